"""Declarations for a configuration field: the range of its values, and which stages depend on it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from noisystudent.errors import InputError

MOST_PIXELS = 10_000
"""Largest side of an image. This and the other largest values are far above all use: a typing error of some
zeros is one line, and does not fill the memory."""
MOST_IMAGES = 1_000_000
"""Largest batch size."""

LENGTHS = ("epochs", "steps", "pool_epochs")
"""Fields that give the length of a training; one of them is set."""

# Keys in the metadata of a dataclass field.
_RANGE, _NEUTRAL, _OF_STUDENT, _LATER = "range", "neutral", "of_student", "later"


@dataclass(frozen=True, slots=True)
class Range:
    """Range of numbers.

    Attributes:
        least: smallest value. None: no such bound, here and below.
        above: all values are greater than this.
        most: largest value.
        below: all values are less than this.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        """Return True if the value is finite and lies within the bounds."""
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """Return the bounds in words, for example 'at least 0 and below 1'."""
        bounds = (
            ("at least", self.least),
            ("above", self.above),
            ("at most", self.most),
            ("below", self.below),
        )
        return " and ".join(f"{comparison} {bound:,}" for comparison, bound in bounds if bound is not None)


def number(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    neutral: bool = False,
    of_student: bool = False,
    later: bool = False,
) -> Any:
    """Declare a field with a range: of its value, or of every item if it is a tuple. None is always allowed.

    Args:
        default: default value of the field.
        least, above, most, below: bounds, see `Range`.
        neutral: True: the results do not depend on the field, see the function `neutral`.
        of_student: True: see the function `of_student`.
        later: True: the field is not part of a fingerprint while it has its default value, so that the stages
            of runs from before the field was there stay valid.
    """
    metadata = {_RANGE: Range(least, above, most, below), _NEUTRAL: neutral, _OF_STUDENT: of_student}
    metadata[_LATER] = later
    return dataclasses.field(default=default, metadata=metadata)


def neutral(default: Any) -> Any:
    """Declare a field that changes the speed, the paths or the log of a run, but not its results.

    It is not part of any fingerprint, so no stage is repeated when it is edited.
    """
    return dataclasses.field(default=default, metadata={_NEUTRAL: True})


def of_student(default: Any) -> Any:
    """Declare a field of `pseudo_label` that changes the student's training but not the labelling.

    If it is edited, the student is trained again and the pool is not labelled again.
    """
    return dataclasses.field(default=default, metadata={_OF_STUDENT: True})


def later(default: Any) -> Any:
    """Declare a field that is not part of a fingerprint while it has its default value, see `number`."""
    return dataclasses.field(default=default, metadata={_LATER: True})


def range_of(field: dataclasses.Field[Any]) -> Range | None:
    """Return the range that was declared with a field, or None."""
    bounds: Range | None = field.metadata.get(_RANGE)
    return bounds


def is_neutral(field: dataclasses.Field[Any]) -> bool:
    """Return True if the field was declared as neutral."""
    return bool(field.metadata.get(_NEUTRAL))


def is_of_student(field: dataclasses.Field[Any]) -> bool:
    """Return True if the field was declared with `of_student`."""
    return bool(field.metadata.get(_OF_STUDENT))


def is_absent(field: dataclasses.Field[Any], value: object) -> bool:
    """Return True if the field was declared as later, and the value is its default."""
    return bool(field.metadata.get(_LATER)) and value == field.default


def is_plain(value: object) -> bool:
    """Return True for text, a boolean, a finite number, None, or a list of them: JSON can store it."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return (
        value is None
        or isinstance(value, str | bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    )


def check_ranges(section: Any, name: str) -> None:
    """Check the range of every field of a section of the configuration.

    Args:
        section: instance of a configuration dataclass.
        name: name of the section in the message, with a dot at its end, e.g. "train.".

    Raises:
        InputError: names the field, its value and the range.
    """
    for field in dataclasses.fields(section):
        allowed, value = range_of(field), getattr(section, field.name)
        items = value if isinstance(value, tuple) else (value,)
        if allowed is not None and any(item is not None and item not in allowed for item in items):
            printed = list(value) if isinstance(value, tuple) else value
            raise InputError(f"{name}{field.name} is {printed}; it must be {allowed}")
