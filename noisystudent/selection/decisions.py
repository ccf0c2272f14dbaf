"""Apply the rule of a selection to images: columns of labels and confidences in, repeats and reasons out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

REASONS = (
    "kept",
    "below_threshold",
    "over_quota",
    "below_top_fraction",
    "too_confident",
    "not_looked_at",
    "teachers_disagree",
    "junk",
)
(
    _KEPT,
    _BELOW_THRESHOLD,
    _OVER_QUOTA,
    _BELOW_TOP_FRACTION,
    _TOO_CONFIDENT,
    _NOT_LOOKED_AT,
    _DISAGREE,
    _JUNK,
) = map(np.uint8, range(len(REASONS)))
_ROUNDING = np.float32(1e-3)  # of an agreement; those of up to 100 teachers differ by 0.01
_BELOW_ALL, _ABOVE_ALL = np.float32(-1), np.float32(2)  # below and above any confidence


class Images(NamedTuple):
    """Some pool images with the label and confidence that the teacher predicted.

    Attributes:
        row: (n,) int64, pool row.
        content_hash: (n, 2) uint64, high and low half of the hash. Their order is that of the bytes.
        label: (n,) int32, most likely class.
        confidence: (n,) float32, its probability.
        junk: (n,) bool, whether the energy is below the limit.
        agreement: (n,) float32, share of the teachers that predict this class. None: it is not read.
    """

    row: NDArray[np.int64]
    content_hash: NDArray[np.uint64]
    label: NDArray[np.int32]
    confidence: NDArray[np.float32]
    junk: NDArray[np.bool_]
    agreement: NDArray[np.float32] | None = None


class Decision(NamedTuple):
    """Decision of a rule for each of n images.

    Attributes:
        repeats: (n,) int32, how many times the image is in the selected pool; 0 if it is not kept.
        reason: (n,) uint8, index in `REASONS`.
    """

    repeats: NDArray[np.int32]
    reason: NDArray[np.uint8]


Decide = Callable[[Images], Decision]
"""A rule with all its thresholds known. It decides for each image independently of the others."""


class Mark:
    """For each class, the last image that a rule includes.

    The images of a class are ordered by falling confidence, then content hash, then row. A class without a
    mark includes all its images or none.

    Args:
        num_classes: number of classes, K.
        include_all: True if a class without a mark includes all its images, False if it includes none.
    """

    def __init__(self, num_classes: int, include_all: bool) -> None:
        self._confidence = np.full(num_classes, _BELOW_ALL if include_all else _ABOVE_ALL)
        self._hash = np.zeros((num_classes, 2), np.uint64)
        self._row = np.zeros(num_classes, np.int64)

    def put(self, label: int, confidence: float, content_hash: bytes, row: int) -> None:
        """Make this image the mark of class `label`."""
        self._confidence[label] = confidence
        self._hash[label] = halves(content_hash)[0]
        self._row[label] = row

    def reached(self, images: Images) -> NDArray[np.bool_]:
        """(n,) True for each image that is not after the mark of its class."""
        level = self._confidence[images.label]
        included: NDArray[np.bool_] = images.confidence > level
        # Images of the same confidence as the mark are compared by hash and then by row.
        tied = np.flatnonzero(images.confidence == level)
        label = images.label[tied]
        high, low = images.content_hash[tied].T
        last_high, last_low = self._hash[label].T
        low_included = (low < last_low) | (low == last_low) & (images.row[tied] <= self._row[label])
        included[tied] = (high < last_high) | (high == last_high) & low_included
        return included


def halves(hashes: Any) -> NDArray[np.uint64]:
    """(n, 2) uint64 halves of the n hashes in a buffer of 16 n bytes. Big-endian keeps the order of bytes."""
    return np.frombuffer(hashes, ">u8").reshape(-1, 2).astype(np.uint64)


@dataclass(frozen=True, slots=True)
class Paper:
    """The rule of the paper: exactly the K most confident images of each class.

    Attributes:
        thresholds: (num_classes,) float64, images of a class must have a confidence above it.
        base: (num_classes,) int32, repeats of an eligible image of each class.
        last: last eligible image of each class.
        more: last image of each class that has one repeat more.
    """

    thresholds: NDArray[np.float64]
    base: NDArray[np.int32]
    last: Mark
    more: Mark

    def __call__(self, images: Images) -> Decision:
        """Decide for some images."""
        above = images.confidence.astype(np.float64) > self.thresholds[images.label]
        eligible = above & self.last.reached(images)
        repeats = np.where(eligible, self.base[images.label] + self.more.reached(images), np.int32(0))
        left_out = np.where(above, _BELOW_TOP_FRACTION, _BELOW_THRESHOLD)
        reason = np.where(repeats > 0, _KEPT, np.where(eligible, _OVER_QUOTA, left_out))
        return Decision(repeats, reason)


@dataclass(frozen=True, slots=True)
class Official:
    """The rule of the published code.

    Attributes:
        lowest: smallest confidence that may be kept, in hundredths.
        cut: (num_classes,) int32, threshold of each class in hundredths.
        base: (num_classes,) int32, repeats that every kept image has.
        chance: (num_classes,) uint64, probability of one repeat more, in units of 2^-64.
        key: 64 bits that select the random numbers.
    """

    lowest: int
    cut: NDArray[np.int32]
    base: NDArray[np.int32]
    chance: NDArray[np.uint64]
    key: int

    def __call__(self, images: Images) -> Decision:
        """Decide for some images."""
        hundredths = np.floor(images.confidence.astype(np.float64) * 100)
        label = images.label
        again = draw(images.content_hash, self.key) < self.chance[label]
        repeats = np.where(hundredths >= self.cut[label], self.base[label] + again, np.int32(0))
        left_out = np.where(hundredths >= self.lowest, _OVER_QUOTA, _BELOW_THRESHOLD)
        return Decision(repeats, np.where(repeats > 0, _KEPT, left_out))


def draw(content_hash: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """(n,) 64 random bits for each image, a pure function of its hash and the key.

    The low half of the hash is uniformly distributed. It is mixed with the key by the bijection at the end of
    splitmix64 (Steele, Lea and Flood, OOPSLA 2014, figure 15).
    """
    bits = content_hash[:, 1] ^ np.uint64(key)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = bits ^ (bits >> np.uint64(31))
    return mixed


@dataclass(frozen=True, slots=True)
class Above:
    """Keep every image with a confidence above the threshold, once."""

    threshold: float

    def __call__(self, images: Images) -> Decision:
        """Decide for some images."""
        kept = images.confidence.astype(np.float64) > self.threshold
        return Decision(kept.astype(np.int32), np.where(kept, _KEPT, _BELOW_THRESHOLD))


@dataclass(frozen=True, slots=True)
class Among:
    """Another rule, restricted to a part of the images.

    Attributes:
        decide: the other rule.
        highest: images with a confidence above it are not kept.
        share: share of the pool that may be kept: the images with the smallest hashes, which are a random
            sample that does not depend on the seed.
        agreement: images on which a smaller share of the teachers agrees are not kept.
        junk: True: images that are junk are kept, too.
    """

    decide: Decide
    highest: float
    share: float
    agreement: float = 0.0
    junk: bool = True

    def __call__(self, images: Images) -> Decision:
        """Decide for some images."""
        outside = images.content_hash[:, 0] >= np.uint64(first_outside(self.share))
        if self.share == 1.0:  # the bound would have to be 2^64, which is no uint64
            outside[:] = False
        disagree = np.zeros_like(outside)
        if images.agreement is not None:
            disagree = too_few_agree(images.agreement, self.agreement)
        dropped = np.zeros_like(outside) if self.junk else images.junk
        excluded = outside | dropped | disagree | (images.confidence.astype(np.float64) > self.highest)
        repeats, reason = self.decide(images)
        why = np.where(dropped, _JUNK, np.where(disagree, _DISAGREE, _TOO_CONFIDENT))
        why = np.where(outside, _NOT_LOOKED_AT, why)
        return Decision(np.where(excluded, np.int32(0), repeats), np.where(excluded, why, reason))


def first_outside(share: float) -> int:
    """First 8 bytes, as a number, of the smallest hash that is outside this share of the pool."""
    return min(int(share * 2**64), 2**64 - 1)


def least_agreement(share: float) -> np.float32:
    """The smallest agreement that counts as this share: 2 of 3 teachers are enough for 0.667."""
    return np.float32(share) - _ROUNDING


def too_few_agree(agreement: NDArray[np.float32], share: float) -> NDArray[np.bool_]:
    """(n,) True for each image on which a smaller share of the teachers agrees."""
    return np.asarray(agreement < least_agreement(share), np.bool_)


def everything(images: Images) -> Decision:
    """Keep every image, once."""
    return Decision(np.ones(len(images.row), np.int32), np.full(len(images.row), _KEPT))
