"""What becomes of an image once the rule of its class is known: columns in, repeats and reasons out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

REASONS = ("kept", "below_threshold", "over_quota", "below_top_fraction", "too_confident", "not_looked_at")
_KEPT, _BELOW_THRESHOLD, _OVER_QUOTA, _BELOW_TOP_FRACTION, _TOO_CONFIDENT, _NOT_LOOKED_AT = map(
    np.uint8, range(len(REASONS))
)
_SOONER, _LATER = np.float32(-1), np.float32(2)  # than any confidence


class Images(NamedTuple):
    """Some images as the teacher sees them.

    Attributes:
        row: (n,) int64 of the pool.
        content_hash: (n, 2) uint64, the halves of the hash, which as numbers are in the order of the bytes.
        label: (n,) int32.
        confidence: (n,) float32.
    """

    row: NDArray[np.int64]
    content_hash: NDArray[np.uint64]
    label: NDArray[np.int32]
    confidence: NDArray[np.float32]


class Decision(NamedTuple):
    """What becomes of them.

    Attributes:
        repeats: (n,) int32.
        reason: (n,) uint8, places in `REASONS`.
    """

    repeats: NDArray[np.int32]
    reason: NDArray[np.uint8]


Decide = Callable[[Images], Decision]


class Mark:
    """An image a class, in the order of falling confidence, then content hash, then row; or all, or none."""

    def __init__(self, num_classes: int, everyone: bool) -> None:
        self._confidence = np.full(num_classes, _SOONER if everyone else _LATER)
        self._hash = np.zeros((num_classes, 2), np.uint64)
        self._row = np.zeros(num_classes, np.int64)

    def put(self, label: int, confidence: float, content_hash: bytes, row: int) -> None:
        """Mark this image of class `label`."""
        self._confidence[label] = confidence
        self._hash[label] = halves(content_hash)[0]
        self._row[label] = row

    def reached(self, images: Images) -> NDArray[np.bool_]:
        """(n,) whether an image comes no later than the mark of its class."""
        level = self._confidence[images.label]
        found: NDArray[np.bool_] = images.confidence > level
        tied = np.flatnonzero(images.confidence == level)
        label = images.label[tied]
        high, low = images.content_hash[tied].T
        last_high, last_low = self._hash[label].T
        sooner = (low < last_low) | (low == last_low) & (images.row[tied] <= self._row[label])
        found[tied] = (high < last_high) | (high == last_high) & sooner
        return found


def halves(hashes: Any) -> NDArray[np.uint64]:
    """(n, 2) of a buffer of n hashes of 16 bytes."""
    return np.frombuffer(hashes, ">u8").reshape(-1, 2).astype(np.uint64)


@dataclass(frozen=True, slots=True)
class Paper:
    """Strict top K.

    Attributes:
        threshold: a confidence above it may be kept.
        base: (K,) int32, how often an eligible image of each class is trained on.
        last: the last eligible image.
        more: the last image that is trained on once more.
    """

    threshold: float
    base: NDArray[np.int32]
    last: Mark
    more: Mark

    def __call__(self, images: Images) -> Decision:
        """The rule for some images."""
        above = images.confidence.astype(np.float64) > self.threshold
        eligible = above & self.last.reached(images)
        repeats = np.where(eligible, self.base[images.label] + self.more.reached(images), np.int32(0))
        left_out = np.where(above, _BELOW_TOP_FRACTION, _BELOW_THRESHOLD)
        reason = np.where(repeats > 0, _KEPT, np.where(eligible, _OVER_QUOTA, left_out))
        return Decision(repeats, reason)


@dataclass(frozen=True, slots=True)
class Official:
    """The published code's rule.

    Attributes:
        lowest: the smallest confidence that may be kept, in hundredths.
        cut: (K,) int32, the threshold of each class in hundredths.
        base: (K,) int32, whole copies of an image.
        chance: (K,) uint64, of one more, in units of 2^-64.
        key: of the draws, 64 bits.
    """

    lowest: int
    cut: NDArray[np.int32]
    base: NDArray[np.int32]
    chance: NDArray[np.uint64]
    key: int

    def __call__(self, images: Images) -> Decision:
        """The rule for some images."""
        hundredths = np.floor(images.confidence.astype(np.float64) * 100)
        label = images.label
        again = draw(images.content_hash, self.key) < self.chance[label]
        repeats = np.where(hundredths >= self.cut[label], self.base[label] + again, np.int32(0))
        left_out = np.where(hundredths >= self.lowest, _OVER_QUOTA, _BELOW_THRESHOLD)
        return Decision(repeats, np.where(repeats > 0, _KEPT, left_out))


def draw(content_hash: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """(n,) 64 random bits an image: half of its hash, uniform as it is, mixed with the key.

    The mixing is the bijection that ends splitmix64 (Steele, Lea and Flood, OOPSLA 2014, figure 15).
    """
    bits = content_hash[:, 1] ^ np.uint64(key)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = bits ^ (bits >> np.uint64(31))
    return mixed


@dataclass(frozen=True, slots=True)
class Above:
    """Every image of a confidence above the threshold, once."""

    threshold: float

    def __call__(self, images: Images) -> Decision:
        """The rule for some images."""
        kept = images.confidence.astype(np.float64) > self.threshold
        return Decision(kept.astype(np.int32), np.where(kept, _KEPT, _BELOW_THRESHOLD))


@dataclass(frozen=True, slots=True)
class Among:
    """A rule for the images it may choose from.

    Attributes:
        decide: the rule.
        highest: confidences above it are out.
        share: of all images, those whose hashes begin with the smallest numbers.
    """

    decide: Decide
    highest: float
    share: float

    def __call__(self, images: Images) -> Decision:
        """The rule for some images."""
        unseen = images.content_hash[:, 0] >= np.uint64(first_unseen(self.share))
        if self.share == 1.0:
            unseen[:] = False
        out = unseen | (images.confidence.astype(np.float64) > self.highest)
        repeats, reason = self.decide(images)
        why = np.where(unseen, _NOT_LOOKED_AT, _TOO_CONFIDENT)
        return Decision(np.where(out, np.int32(0), repeats), np.where(out, why, reason))


def first_unseen(share: float) -> int:
    """The first 8 bytes of the smallest hash that is not among this share of all, as a number."""
    return min(int(share * 2**64), 2**64 - 1)


def everything(images: Images) -> Decision:
    """Every image once."""
    return Decision(np.ones(len(images.row), np.int32), np.full(len(images.row), _KEPT))
