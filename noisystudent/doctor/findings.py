"""What `doctor` says about one thing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a run depends on.

    Attributes:
        name: what it is.
        value: how it is here, in words.
        fix: what to do about it; "" if nothing must be fixed.
    """

    name: str
    value: str
    fix: str = ""
