"""Read YAML from files and flags, in bounded time and memory, whoever wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from noisystudent.errors import InputError, is_utf8

_BYTES = 500_000  # of a file or flag
_VALUES = 100_000  # with all aliases expanded; a run of 100 students has 20,000
_LEVELS = 30  # of nested lists and mappings; a configuration has 5
_DIGITS = 100  # a longer number is text: Python cannot print whole numbers of thousands of digits

_TEXT, _DATE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp"


def read_text(path: Path) -> str:
    """Text of a YAML file.

    Raises:
        InputError: the file cannot be read, is too large or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    if len(content) > _BYTES:
        raise InputError(f"{path} is larger than {_BYTES:,} bytes; a YAML file of fields is smaller")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8; save it as UTF-8") from error


def parse(text: str, name: str) -> Any:
    """The values in YAML text: mappings, lists, text, numbers, booleans and null.

    Aliases are allowed, and tags such as !!binary are not.

    Args:
        text: the YAML.
        name: of the file or flag, for messages.

    Raises:
        InputError: not valid YAML, has a tag, refers to itself, or is too large or too deeply nested.
    """
    try:
        _check_size(text, name)
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name} is not valid YAML: {reason}") from error
    except ValueError as error:  # such as 0b_, which has the form of a number
        raise InputError(f"{name} is not valid YAML: {error}") from error


class _Loader(yaml.SafeLoader):
    """The safe loader; dates, which no field has, and very long numbers are text."""

    def resolve(self, kind: type[yaml.Node], value: str | None, implicit: Any) -> str:
        """The tag of a value that has none."""
        tag: str = super().resolve(kind, value, implicit)
        is_long = kind is yaml.ScalarNode and value is not None and len(value) > _DIGITS
        return _TEXT if is_long or tag == _DATE else tag


@dataclass
class _Value:
    """A value in YAML text.

    Attributes:
        anchor: name by which aliases refer to it.
        values: number of values in it, itself included.
        levels: levels of collections in it.
    """

    anchor: str | None = None
    values: int = 1
    levels: int = 0

    def add(self, inner: _Value) -> None:
        """Add a value to this collection."""
        self.values += inner.values
        self.levels = max(self.levels, inner.levels + 1)


def _check_size(text: str, name: str) -> None:
    """Count values and levels in the events of the parser, with every alias as large as what it stands for.

    A few lines of aliases of aliases can stand for more values than there is memory.
    """
    if len(text) > _BYTES:
        raise InputError(f"{name} has more than {_BYTES:,} characters; give a shorter value")
    done: dict[str | None, _Value] = {}  # by anchor
    inside = [_Value()]  # collections that are not complete
    # the parser in C, where there is one, is ten times as fast
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if reason := _refusal(event, [value.anchor for value in inside]):
            raise InputError(f"{name} {reason}")
        if isinstance(event, yaml.CollectionStartEvent):
            inside.append(_Value(event.anchor))
            continue
        if isinstance(event, yaml.AliasEvent):
            inside[-1].add(done.get(event.anchor, _Value()))
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionEndEvent):
            value = _Value(event.anchor) if isinstance(event, yaml.ScalarEvent) else inside.pop()
            done[value.anchor] = value
            inside[-1].add(value)
        if len(inside) + inside[-1].levels > _LEVELS:
            raise InputError(f"{name} has more than {_LEVELS} levels of nesting; a configuration has 5")
        if inside[-1].values > _VALUES:
            raise InputError(f"{name} has more than {_VALUES:,} values, its aliases included; give fewer")


def _refusal(event: yaml.Event, inside: list[str | None]) -> str | None:
    """Reason to refuse an event within collections with these anchors; None if it is allowed."""
    if isinstance(event, yaml.AliasEvent) and event.anchor in inside:
        return f"refers to itself with *{event.anchor}; write the values out"
    if (tag := getattr(event, "tag", None)) is not None:
        return f"has the tag {tag!r}; plain text, numbers, lists and mappings are right"
    if isinstance(event, yaml.ScalarEvent) and ("\0" in event.value or not is_utf8(event.value)):
        return f"has the text {event.value!r}, which no file or name can have"
    return None
