"""From a recipe's YAML and the command line's overrides to one checked `Config`, and back to YAML.

A recipe says `teacher:` in full, `student:` where students differ from the teacher, and `students:` how many
there are, or where each differs from `student`. What is written to a run's config.yaml is the resolved form.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import yaml

from noisystudent.config import Config, StudentConfig
from noisystudent.errors import InputError, did_you_mean
from noisystudent.recipes.shelf import matrices, names, read, text

T = TypeVar("T")
Raw = dict[str, Any]

# Two ways to say one thing: an override with one of them withdraws the other.
_DURATIONS = frozenset({"epochs", "steps"})

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def load(recipe: str, overrides: Iterable[tuple[str, Any]] = ()) -> Config:
    """Read a recipe and apply `(dotted.field, value)` overrides, which win over the file.

    Raises:
        InputError: an unknown key, a value of the wrong type, or a value out of range; names file and field.
    """
    raw = read(recipe)
    if "cells" in raw:
        raise InputError(f"{recipe} is a matrix of runs, not one run; noisystudent ablate {recipe} runs it")
    return resolve(raw, overrides, origin=recipe)


def resolve(
    raw: Mapping[str, Any], overrides: Iterable[tuple[str, Any]] = (), origin: str = "config"
) -> Config:
    """Expand inheritance (teacher → student → students) and check every field against the dataclasses."""
    merged = _merge({}, raw)
    for dotted, value in overrides:
        _require_field(dotted)
        _override(merged, dotted.split("."), value)
    try:
        base = _merge(merged.get("teacher") or {}, merged.pop("student", None) or {})
        merged["students"] = [_merge(base, differs) for differs in _differences(merged.pop("students", None))]
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error
    return _build(Config, merged, origin, "")


def dump(config: Config) -> str:
    """The resolved configuration as YAML that `load` reads back to an equal `Config`."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)


def field_help(cls: type = Config, prefix: str = "") -> list[tuple[str, str, str]]:
    """(dotted name, default, help) of every field that can be set, in pipeline order."""
    rows: list[tuple[str, str, str]] = []
    hints, docs = typing.get_type_hints(cls), _field_docs(cls)
    for field in dataclasses.fields(cls):
        inner = _dataclass_in(hints[field.name])
        name = prefix + ("student" if field.name == "students" else field.name)
        if inner is not None:
            rows += field_help(inner, f"{name}.")
        else:
            default = field.default if field.default is not dataclasses.MISSING else ""
            rows.append((name, str(default), docs.get(field.name, "")))
    return rows


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Raw:
    """A deep copy of `base` with `over` on top; a duration in `over` withdraws the other kind in `base`."""
    for given in (base, over):
        if not isinstance(given, Mapping):
            raise InputError(f"{given!r} stands where a mapping of fields belongs")
    merged: Raw = {
        key: _merge({}, value) if isinstance(value, Mapping) else value for key, value in base.items()
    }
    said = {name for name in _DURATIONS if over.get(name) is not None}
    if len(said) == 1:
        for name in _DURATIONS - said:
            merged.pop(name, None)
    for key, value in over.items():
        inner = merged.get(key)
        if isinstance(value, Mapping):
            merged[key] = _merge(inner if isinstance(inner, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def _nested(path: list[str], value: Any) -> Raw:
    for key in reversed(path):
        value = {key: value}
    return typing.cast(Raw, value)


def _differences(students: Any) -> list[Any]:
    """Where each student differs from `student`, of what stands under `students`: a number, or a list."""
    if isinstance(students, int) and not isinstance(students, bool) and students >= 0:
        return [{}] * students
    if students is None or isinstance(students, list):
        return [differs or {} for differs in students or ()]
    raise InputError(f"students is {students!r}; it must be a whole number or a list of differences")


@functools.cache
def _field_names() -> tuple[str, ...]:
    return tuple(row[0] for row in field_help())


def _require_field(dotted: str) -> None:
    """Refuse a name no field has, whatever recipe it is meant for."""
    name = re.sub(r"^students\.\d+(?=\.)", "student", dotted)
    known = _field_names()
    whole = any(field.startswith(f"{name}.") for field in known)  # a section given as a mapping
    if not (whole or name in known or name == "students" or ".options." in name):
        raise InputError(f"no field {dotted!r}{did_you_mean(dotted, known)}")


def _override(raw: Raw, path: list[str], value: Any) -> None:
    """Set one field; `student.*` also reaches into each entry of `students`, so the command line wins."""
    if path[0] == "students" and len(path) > 1:
        _override_one_student(raw, path, value)
        return
    if path[0] == "student" and isinstance(raw.get("students"), list):
        raw["students"] = [_merge(entry or {}, _nested(path[1:], value)) for entry in raw["students"]]
    merged = _merge(raw, _nested(path, value))
    raw.clear()
    raw.update(merged)


def _override_one_student(raw: Raw, path: list[str], value: Any) -> None:
    entries = _differences(raw.get("students"))
    if not path[1].isdigit() or int(path[1]) >= len(entries):
        raise InputError(f"--{'.'.join(path)}: students are numbered 0 to {len(entries) - 1}")
    entries[int(path[1])] = _merge(entries[int(path[1])], _nested(path[2:], value))
    raw["students"] = entries


def _build(cls: type[T], raw: Mapping[str, Any], origin: str, prefix: str) -> T:
    """A dataclass from a mapping; unknown keys and wrong types are errors that name the dotted field."""
    if not isinstance(raw, Mapping):
        raise InputError(f"{origin}: {prefix.rstrip('.')} is {raw!r}; a mapping of fields belongs there")
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if cls is Config:
        known.append("student")
    for key in raw:
        if key not in known:
            raise InputError(f"{origin}: unknown key '{prefix}{key}'{did_you_mean(str(key), known)}")
    values = {key: _convert(hints[key], value, origin, f"{prefix}{key}") for key, value in raw.items()}
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that a field holds, directly, optionally or as a tuple of them."""
    for candidate in (hint, *typing.get_args(hint)):
        if inspect.isclass(candidate) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _convert(hint: Any, value: Any, origin: str, name: str) -> Any:
    """`value` as the type the field declares, or an InputError that says what would be right."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, origin, name)
    if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
        return _build(hint, value, origin, f"{name}.")
    if kind is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(arguments[0], item, origin, f"{name}.{i}") for i, item in enumerate(items))
    if kind is dict and isinstance(value, Mapping):
        return dict(value)
    if kind is typing.Literal:
        if value in arguments:
            return value
        right = f"one of {', '.join(map(str, arguments))}{did_you_mean(str(value), map(str, arguments))}"
    else:
        try:
            return _scalar(hint, value)
        except ValueError:
            right = _KINDS.get(hint, str(hint))
    raise InputError(f"{origin}: {name} is {value!r}; it must be {right}")


def _scalar(hint: Any, value: Any) -> Any:
    """Strict but for numbers: `1e-3` is a string to YAML 1.1, and an int is a valid float."""
    if hint is bool or isinstance(value, bool):
        if hint is bool and isinstance(value, bool):
            return value
    elif hint is float and isinstance(value, int | float | str):
        return float(value)
    elif hint is int and (isinstance(value, int | str) or (isinstance(value, float) and value.is_integer())):
        return int(value)
    elif hint is str and isinstance(value, str | int | float):
        return str(value)
    raise ValueError(value)


def _field_docs(cls: type) -> dict[str, str]:
    """Field name → the string literal that stands under it, inherited fields included."""
    docs: dict[str, str] = {}
    for parent in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        (tree,) = ast.parse(inspect.getsource(parent)).body
        for field, doc in itertools.pairwise(typing.cast(ast.ClassDef, tree).body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(doc, ast.Expr)
                and isinstance(doc.value, ast.Constant)
            ):
                docs[field.target.id] = " ".join(str(doc.value.value).split())
    return docs


__all__ = [
    "Config",
    "StudentConfig",
    "dump",
    "field_help",
    "load",
    "matrices",
    "names",
    "read",
    "resolve",
    "text",
]
