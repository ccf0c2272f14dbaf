"""Convert the YAML of a recipe and the overrides of the command line to one checked `Config`, and back.

In a recipe, `teacher:` has all fields of the teacher. `student:` has the fields in which students differ from
the teacher. `students:` is the number of students, or a list of the fields in which each one differs from
`student`. A run's config.yaml contains the resolved form, in which every student has all its fields.
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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import yaml

from noisystudent.config import Config, TeacherConfig
from noisystudent.config.fields import range_of
from noisystudent.errors import InputError, did_you_mean
from noisystudent.recipes.overrides import override
from noisystudent.recipes.shelf import matrices, names, read, text

__all__ = ["dump", "field_help", "load", "matrices", "names", "read", "resolve", "text"]

T = TypeVar("T")

# Names by which the entries of a list are set.
_NAMED_AS = {"students": "student", "teachers": "teachers.0"}

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def load(recipe: str, overrides: Iterable[tuple[str, Any]] = ()) -> Config:
    """Read a recipe and apply overrides, which take precedence over the file.

    Args:
        recipe: name of a shipped recipe, or a YAML file.
        overrides: (dotted field name, value) pairs. Later ones take precedence.

    Raises:
        InputError: a key is unknown, or a value has the wrong type or is out of range. The message names the
            field, and the file or the override that has the value.
    """
    raw, overrides = read(recipe), list(overrides)
    if "cells" in raw:
        raise InputError(f"{recipe} is a matrix of runs, not one run; use `noisystudent ablate {recipe}`")
    try:
        return resolve(raw, overrides, origin=recipe)
    except InputError as error:
        # The same error with fewer overrides is not of the last ones.
        while overrides and _error(raw, overrides[:-1], recipe) == str(error):
            overrides.pop()
        prefix = f"{recipe}: "
        if not overrides or not str(error).startswith(prefix):
            raise
        name, value = overrides[-1]
        raise InputError(f"--{name} {value}: {str(error).removeprefix(prefix)}") from error


def _error(raw: Mapping[str, Any], overrides: Sequence[tuple[str, Any]], origin: str) -> str:
    """The message of `resolve`; "" if it succeeds."""
    try:
        resolve(raw, overrides, origin)
    except InputError as error:
        return str(error)
    return ""


def resolve(
    raw: Mapping[str, Any], overrides: Iterable[tuple[str, Any]] = (), origin: str = "config"
) -> Config:
    """Apply overrides to the content of a recipe, expand inheritance and check every field.

    Students inherit from `student`, which inherits from `teacher`. Error messages begin with `origin`.

    Raises:
        InputError: see `load`.
    """
    overrides = list(overrides)
    for dotted, _ in overrides:
        _require_field(dotted)
    try:
        merged = override(raw, overrides)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error
    return _build(Config, merged, origin, "")


def dump(config: Config) -> str:
    """Convert a configuration to YAML, from which `load` makes an equal `Config`."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)


def field_help(cls: type = Config, prefix: str = "") -> list[tuple[str, str, str]]:
    """(dotted name, default, help text) of every field that can be set, in the order of the pipeline.

    The help text of a numeric field ends with its range, for example '(at least 0 and below 1)'.
    """
    rows: list[tuple[str, str, str]] = []
    hints, docs = typing.get_type_hints(cls), _field_docs(cls)
    for field in dataclasses.fields(cls):
        inner = _dataclass_in(hints[field.name])
        # Users set the fields of all students as `student.*`; `students` itself is a number or a list.
        name = prefix + _NAMED_AS.get(field.name, field.name)
        if inner is not None:
            # An entry of `teachers` also has the sections of `teacher`, which are in the list already.
            shared = dataclasses.fields(TeacherConfig) if field.name == "teachers" else ()
            left_out = tuple(f"{name}.{section.name}." for section in shared)
            rows += [row for row in field_help(inner, f"{name}.") if not row[0].startswith(left_out)]
        else:
            default = field.default if field.default is not dataclasses.MISSING else ""
            allowed = range_of(field)
            bounds = f" ({allowed})" if allowed is not None else ""
            rows.append((name, str(default), docs.get(field.name, "") + bounds))
    return rows


def _plain(value: Any) -> Any:
    """The value with lists in place of tuples, which YAML's safe mode cannot write."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


@functools.cache
def _field_names() -> tuple[str, ...]:
    return tuple(row[0] for row in field_help())


def _require_field(dotted: str) -> None:
    """Raise InputError if no field has this dotted name."""
    name = re.sub(r"^students\.\d+(?=\.)", "student", dotted)
    known = _field_names()
    # An entry of `teachers` has fields of its own, and those of `teacher`.
    names = [re.sub(r"^teachers\.\d+(?=\.)", section, name) for section in ("teachers.0", "teacher")]
    # A whole section may be given as a mapping.
    section = any(field.startswith(f"{each}.") for field in known for each in names)
    # `options` are arguments of timm.create_model, with any name.
    if not (section or set(names) & {*known, "students", "teachers"} or ".options." in name):
        raise InputError(f"no field {dotted!r}{did_you_mean(dotted, known)}")


def _build(cls: type[T], raw: Mapping[str, Any], origin: str, prefix: str) -> T:
    """Make an instance of a dataclass from a mapping; `prefix` is its dotted name and a dot, or empty.

    Raises:
        InputError: a key is unknown, or a value is wrong. The message has the dotted name of the field.
    """
    if not isinstance(raw, Mapping):
        raise InputError(f"{origin}: {prefix.rstrip('.')} is {raw!r}; it must be a mapping of fields")
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if cls is Config:
        known.append("student")  # a key of recipes only: `resolve` moves its fields into `students`
    for key in raw:
        if key not in known:
            raise InputError(f"{origin}: unknown key '{prefix}{key}'{did_you_mean(str(key), known)}")
    values = {key: _convert(hints[key], value, origin, f"{prefix}{key}") for key, value in raw.items()}
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass in a type hint `C`, `C | None` or `tuple[C, ...]`; None if there is none."""
    for candidate in (hint, *typing.get_args(hint)):
        if inspect.isclass(candidate) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _convert(hint: Any, value: Any, origin: str, name: str) -> Any:
    """Convert a value of YAML to the type of its field.

    Raises:
        InputError: the value has the wrong type. The message says what would be right.
    """
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert_to_first([a for a in arguments if a is not type(None)], value, origin, name)
    if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
        return _build(hint, value, origin, f"{name}.")
    if kind is tuple:
        items = value if isinstance(value, list | tuple) else [value]  # one item needs no list
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


def _convert_to_first(hints: Sequence[Any], value: Any, origin: str, name: str) -> Any:
    """Convert a value to the first of some types that takes it.

    Raises:
        InputError: that of the first type, if none takes it.
    """
    errors: list[InputError] = []
    for hint in hints:
        try:
            return _convert(hint, value, origin, name)
        except InputError as error:
            errors.append(error)
    raise errors[0]


def _scalar(hint: Any, value: Any) -> Any:
    """Convert a single value; raises ValueError if it has another type.

    Only numbers are converted: YAML 1.1 reads `1e-3` as a string, and a whole number is a valid float.
    """
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
    """Field name -> the string literal under the field in the source, inherited fields included."""
    docs: dict[str, str] = {}
    # Python discards a string literal under a field, so it is read from the source of each class.
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
