"""A wrong value is an error where it is written."""

from __future__ import annotations

from noisystudent.errors import InputError


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless the condition holds."""
    if not condition:
        raise InputError(message)
