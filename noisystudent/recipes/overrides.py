"""Merging of the content of a recipe with what overrides it: flags, fields, and the cells of an ablation."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from noisystudent.config.fields import LENGTHS
from noisystudent.errors import InputError

Raw = dict[str, Any]
"""Content of a recipe, not checked."""

# An override with one of the fields for the length of a training removes the others.
_DURATIONS = frozenset(LENGTHS)

_MOST_ENTRIES = 100

# Fields of a model that were chosen for its network. They are not kept for another one.
_OF_NETWORK = frozenset({"resolution", "options"})

# Section and field of a student that may be a list, with one value for each student.
_BY_STUDENT = ("selection", "top_fraction")


def override(raw: Mapping[str, Any], overrides: Sequence[tuple[str, Any]]) -> Raw:
    """Apply overrides to the content of a recipe, and expand its inheritance.

    A number of students keeps the first entries of a list of students, and repeats the last one for more,
    if there is no `student`: in the config.yaml of a run the entries alone have the settings.

    A network that the overrides name keeps neither the resolution nor the options that the recipe has for
    the network in its place. So `--student.model.name` leaves no student at a resolution for another network.

    Args:
        raw: content of a recipe. It is not changed.
        overrides: (dotted field name, value) pairs. Later ones take precedence.

    Returns:
        A copy with `teacher`, `students` and so on, each with all its fields, and without `student`.

    Raises:
        InputError: a section is not a mapping, a student does not exist, or no student can be repeated.
    """
    # These replace the entries of a list.
    listed = [field for field in overrides if field[0] in ("students", "teachers")]
    before, after = _expanded(_applied(raw, listed)), _expanded(_applied(raw, overrides))
    given = _expanded(_applied(_without_sizes(raw), overrides))  # sizes and options of the overrides alone
    for old, new, own in zip(_models(before), _models(after), _models(given), strict=True):
        if old.get("name") not in (None, new.get("name")):
            for field in _OF_NETWORK:
                new.pop(field, None)
            new.update((field, own[field]) for field in _OF_NETWORK if field in own)
    return after


def _expanded(raw: Mapping[str, Any]) -> Raw:
    """Students inherit from `student`, which inherits from `teacher`, as the entries of `teachers` do."""
    expanded = merge({}, raw)
    if expanded.get("teachers") is not None:
        entries = _entries(expanded["teachers"], "teachers")
        expanded["teachers"] = [_first_teacher(expanded.get("teacher") or {}, entry) for entry in entries]
    base = merge(expanded.get("teacher") or {}, expanded.pop("student", None) or {})
    differences = list_students(expanded.pop("students", None))
    students = [merge(base, difference) for difference in differences]
    return expanded | {"students": [_own_value(student, index) for index, student in enumerate(students)]}


def _first_teacher(teacher: Raw, entry: Raw) -> Raw:
    """An entry of `teachers` with what it inherits; a teacher that exists needs no settings of a training."""
    if _exists(entry):
        needed = entry.get("model_from") is not None and teacher.get("model")
        teacher = {"model": teacher["model"]} if needed else {}
    return merge(teacher, entry)


def _exists(entry: Mapping[str, Any]) -> bool:
    """True if an entry of `teachers` is not trained."""
    return entry.get("model_from") is not None or entry.get("labels_from") is not None


def _own_value(student: Raw, index: int) -> Raw:
    """The student with its own value of the list in _BY_STUDENT. The last value holds for later students."""
    section, field = _BY_STUDENT
    values = student[section].get(field) if isinstance(student.get(section), dict) else None
    if not (isinstance(values, list) and values):
        return student
    return merge(student, _nested([section, field], values[min(index, len(values) - 1)]))


def _models(expanded: Raw) -> list[Raw]:
    """The section `model` of every network, students last; empty where there is none."""
    learners = [expanded.get(name) for name in ("teacher", "filter", "pretrain")]
    learners += [*(expanded.get("teachers") or ()), *expanded["students"]]
    models = [learner.get("model") if isinstance(learner, dict) else None for learner in learners]
    return [model if isinstance(model, dict) else {} for model in models]


def _without_sizes(value: Any) -> Any:
    """A copy of the content of a recipe without the fields in _OF_NETWORK of every section `model`."""
    if isinstance(value, list):
        return [_without_sizes(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    plain = {key: _without_sizes(item) for key, item in value.items()}
    if isinstance(plain.get("model"), Mapping):
        plain["model"] = {key: item for key, item in plain["model"].items() if key not in _OF_NETWORK}
    return plain


def _applied(raw: Mapping[str, Any], overrides: Sequence[tuple[str, Any]]) -> Raw:
    merged = merge({}, raw)
    for dotted, value in overrides:
        entries = merged.get("students")
        if dotted == "students" and isinstance(entries, list) and raw.get("student") is None:
            value = _resized(entries, value)
        _override(merged, dotted.split("."), value)
    return merged


def _resized(entries: list[Any], students: Any) -> list[Any]:
    """The first entries for a number of students, with the last one repeated; a list replaces them."""
    given = list_students(students)
    if isinstance(students, list):
        return given
    if given and not entries:
        raise InputError(
            f"students is {students}, and there is no student whose settings they could have; give `student`"
        )
    return [merge(entries[min(index, len(entries) - 1)] or {}, {}) for index in range(len(given))]


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of each field; the students or teachers of a list are numbered from 0 on."""
    for key, value in content.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Raw:
    """Return a deep copy of `base`, in which the values of `over` take precedence.

    If `over` has one of `epochs`, `steps` and `pool_epochs`, the others are removed from the result.
    """
    for section in (base, over):
        if not isinstance(section, Mapping):
            raise InputError(f"{section!r} is given where a mapping of fields is needed")
    merged: Raw = {
        key: merge({}, value) if isinstance(value, Mapping) else value for key, value in base.items()
    }
    durations = {name for name in _DURATIONS if over.get(name) is not None}
    if len(durations) == 1:
        for name in _DURATIONS - durations:
            merged.pop(name, None)
    for key, value in over.items():
        inner = merged.get(key)
        # An empty section changes nothing. Empty options are a value: none.
        if isinstance(value, Mapping) and (value or key != "options"):
            merged[key] = merge(inner if isinstance(inner, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def list_students(students: Any) -> list[Any]:
    """Return the fields in which each student differs from `student`.

    Args:
        students: a number of students, a list of these fields, or None: no students.

    Raises:
        InputError: it is something else.
    """
    if isinstance(students, int) and not isinstance(students, bool) and 0 <= students <= _MOST_ENTRIES:
        return [{}] * students
    return _entries(students, "students", "a whole number, or ")


def _entries(given: Any, name: str, also: str = "") -> list[Any]:
    """Return the entries of the list `students` or `teachers`; `also` are other values, for messages."""
    if given is None or (isinstance(given, list) and len(given) <= _MOST_ENTRIES):
        entries = [entry or {} for entry in given or ()]
        if all(isinstance(entry, Mapping) for entry in entries):
            return entries
    raise InputError(
        f"{name} is {given!r}; it must be {also}a list of mappings, of at most {_MOST_ENTRIES} {name}"
    )


def _override(raw: Raw, path: list[str], value: Any) -> None:
    """Set one field of `raw`.

    `student.*` is also set in each entry of the list `students`, which would take precedence otherwise, and
    `teacher.*` in each trained entry of the list `teachers`.
    """
    if path[0] in ("students", "teachers") and len(path) > 1:
        _override_one(raw, path, value)
        return
    if path[0] == "student" and isinstance(raw.get("students"), list):
        raw["students"] = [merge(entry or {}, _nested(path[1:], value)) for entry in raw["students"]]
    if path[0] == "teacher" and raw.get("teachers"):
        entries = _entries(raw["teachers"], "teachers")
        raw["teachers"] = [
            entry if _exists(entry) else merge(entry, _nested(path[1:], value)) for entry in entries
        ]
    merged = merge(raw, _nested(path, value))  # removes the other duration, if `value` is one
    raw.clear()
    raw.update(merged)


def _override_one(raw: Raw, path: list[str], value: Any) -> None:
    name = path[0]
    entries = list_students(raw.get(name)) if name == "students" else _entries(raw.get(name), name)
    if path[1] not in map(str, range(len(entries))):
        raise InputError(
            f"--{'.'.join(path)}: no such {name.removesuffix('s')}; they are numbered 0 to {len(entries) - 1}"
        )
    entries[int(path[1])] = merge(entries[int(path[1])], _nested(path[2:], value))
    raw[name] = entries


def _nested(path: list[str], value: Any) -> Raw:
    """(['a', 'b'], 1) -> {'a': {'b': 1}}."""
    for key in reversed(path):
        value = {key: value}
    return typing.cast(Raw, value)
