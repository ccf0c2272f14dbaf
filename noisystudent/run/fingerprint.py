"""Fingerprints: equal values have equal digests, whatever their types and the order of their keys."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np


class ListingFingerprint(NamedTuple):
    """Fingerprints of the listed images, which change if a file is added, removed, renamed or rewritten.

    Attributes:
        labeled: of the labelled images, val and test. Trainings that have no pool image depend on them alone.
        pool: of the unlabelled images.
    """

    labeled: str
    pool: str


def fingerprint(*parts: object) -> str:
    """Return the SHA-256, in hex, of dataclasses, mappings, sequences, paths, strings and numbers.

    Equal values have equal digests: the order of keys does not matter, a list equals a tuple, 1.0 equals 1.

    Raises:
        TypeError: a part has no canonical form.
        ValueError: a number is not finite.
    """
    text = json.dumps(_canonical(parts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _canonical(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"keys of a fingerprinted mapping are strings, not {list(value)!r}")
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, np.generic):
        return _canonical(value.item())
    if isinstance(value, float) and value.is_integer():
        return int(value)  # `10` in a recipe and `10.0` on the command line are the same value
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be fingerprinted")
