"""Arrays in, floats out: accuracy, likelihood and calibration of class probabilities.

Everywhere `probs` is (N, K) with rows that sum to 1 and `labels` is (N,) integers in 0 … K-1. Sums are
float64. The predicted class is the first largest probability, so ties do not depend on the images' order.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.errors import InputError

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

RMS_BIN = 100  # images, Hendrycks et al. 2021


@dataclass(frozen=True, slots=True)
class Reliability:
    """A reliability diagram: what the model claims and what is true, bin by bin; an empty bin is all zeros.

    Attributes:
        confidence: (bins,) float64, mean confidence of the images of a bin.
        accuracy: (bins,) float64, share of them that is right.
        count: (bins,) int64, how many they are.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]


def check(probs: Floats, labels: Ints) -> None:
    """Refuse arrays no metric is defined on.

    Raises:
        InputError: no images, shapes that do not match, or a label outside 0 … K-1 (-1 is an unknown label).
    """
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or not probs.size:
        raise InputError(
            f"probs are {probs.shape} and labels {labels.shape}; (N, K) and (N,) with N, K >= 1 are needed"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= probs.shape[1]:
        raise InputError(
            f"labels run from {low} to {high}; with {probs.shape[1]} classes they lie in 0 to K-1"
        )


def correct(probs: Floats, labels: Ints) -> NDArray[np.bool_]:
    """(N,) whether the most likely class is the label."""
    check(probs, labels)
    return np.asarray(probs.argmax(axis=1) == labels)


def top_k(probs: Floats, labels: Ints, k: int) -> float:
    """Share of images whose label is among the k most likely classes; with fewer than k classes, k is K."""
    check(probs, labels)
    own = np.take_along_axis(probs, labels[:, None], axis=1)
    earlier = np.arange(probs.shape[1]) < labels[:, None]
    rank = ((probs > own) | ((probs == own) & earlier)).sum(
        axis=1
    )  # 0 is first; equals argsort, without the sort
    return float((rank < min(k, probs.shape[1])).mean())


def nll(probs: Floats, labels: Ints) -> float:
    """Mean negative log-likelihood in nats; a probability that underflowed counts as the smallest float32."""
    check(probs, labels)
    own = np.take_along_axis(probs, labels[:, None], axis=1).astype(np.float64)
    return float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean())


def brier(probs: Floats, labels: Ints) -> float:
    """Mean squared distance to the one-hot label, summed over classes: 0 is best, 2 worst (Brier 1950)."""
    check(probs, labels)
    own = np.take_along_axis(probs, labels[:, None], axis=1).astype(np.float64)[:, 0]
    squares = np.square(probs, dtype=np.float64).sum(axis=1)
    return float((squares - 2 * own + 1).mean())


def reliability(probs: Floats, labels: Ints, bins: int = 15) -> Reliability:
    """Confidence and accuracy in equal-width bins (b/bins, (b+1)/bins] of the largest probability.

    Raises:
        InputError: fewer than one bin, or arrays that do not match.
    """
    if bins < 1:
        raise InputError(f"evaluate.ece_bins is {bins}; at least 1")
    right = correct(probs, labels)
    confidence = probs.max(axis=1).astype(np.float64)
    inner_edges = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    rows = np.digitize(confidence, inner_edges, right=True)
    count = np.bincount(rows, minlength=bins)
    filled = np.maximum(count, 1)
    return Reliability(
        np.bincount(rows, weights=confidence, minlength=bins) / filled,
        np.bincount(rows, weights=right, minlength=bins) / filled,
        count.astype(np.int64),
    )


def ece(probs: Floats, labels: Ints, bins: int = 15) -> float:
    """Expected calibration error: |accuracy - confidence| averaged over images by bin (Guo et al. 2017)."""
    table = reliability(probs, labels, bins)
    return float((table.count * np.abs(table.accuracy - table.confidence)).sum() / table.count.sum())


def adaptive_reliability(probs: Floats, labels: Ints, size: int = RMS_BIN) -> Reliability:
    """Confidence and accuracy of bins of `size` images in ascending confidence; the last takes the rest.

    Raises:
        InputError: arrays that do not match, or bins of no images.
    """
    if size < 1:
        raise InputError(f"the bins of the RMS calibration error have {size} images; at least 1 is needed")
    confidence, right = _by_confidence(probs, labels)
    bins = max(len(confidence) // size, 1)
    rows = np.minimum(np.arange(len(confidence)) // size, bins - 1)
    count = np.bincount(rows)
    return Reliability(np.bincount(rows, confidence) / count, np.bincount(rows, right) / count, count)


def rms_calibration(probs: Floats, labels: Ints, size: int = RMS_BIN) -> float:
    """Root of the mean squared gap of `adaptive_reliability`, each bin weighted by its images."""
    return _rms(adaptive_reliability(probs, labels, size), slice(None))


def rms_official(probs: Floats, labels: Ints, size: int = RMS_BIN) -> float:
    """`rms_calibration` as ImageNet-A's script has it: the most confident bin is left out of the sum.

    Raises:
        InputError: fewer images than two bins, of which nothing would be left.
    """
    table = adaptive_reliability(probs, labels, size)
    if len(table.count) < 2:
        raise InputError(f"rms_official leaves out one bin of {size}; {len(labels)} images make only one")
    return _rms(table, slice(-1))


def aurra(probs: Floats, labels: Ints) -> float:
    """Area under the response rate accuracy curve: mean over k of the accuracy of the k most confident."""
    _, right = _by_confidence(probs, labels)
    return float((np.cumsum(right[::-1]) / np.arange(1, len(right) + 1)).mean())


def real_accuracy(predictions: Ints, label_sets: Sequence[Collection[int]]) -> float:
    """Share of images whose predicted class is among their labels; images without labels do not count.

    Args:
        predictions: (N,) classes.
        label_sets: N collections of classes (Beyer et al. 2020).

    Raises:
        InputError: lengths differ, or no image has a label.
    """
    if len(predictions) != len(label_sets):
        raise InputError(f"ReaL has {len(label_sets)} label sets for {len(predictions)} predictions")
    hits = [int(one) in labels for one, labels in zip(predictions, label_sets, strict=True) if labels]
    if not hits:
        raise InputError("no image has a ReaL label; the accuracy is undefined")
    return sum(hits) / len(hits)


def _by_confidence(probs: Floats, labels: Ints) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) confidence, ascending, and whether each is right.

    Images of equal confidence share their mean, so that their order in the data set does not count.
    """
    right = correct(probs, labels)
    values, group, count = np.unique(probs.max(axis=1), return_inverse=True, return_counts=True)
    shared = np.bincount(group, weights=right) / count
    return np.repeat(values.astype(np.float64), count), np.repeat(shared, count)


def _rms(table: Reliability, bins: slice) -> float:
    squared = np.square(table.accuracy - table.confidence)[bins] * table.count[bins]
    return math.sqrt(float(squared.sum()) / float(table.count.sum()))
