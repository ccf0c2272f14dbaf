"""Accuracy, likelihood and calibration of class probabilities.

The functions take arrays and return floats. `probs` is always (N, K) with rows that sum to 1, and `labels` is
(N,) integers in 0 … K-1. Sums are computed in float64. The predicted class is the one with the largest
probability; of equal probabilities it is the lowest class number, so ties do not depend on the images' order.
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

RMS_BIN = 100  # images in a bin of the RMS calibration error, as in Hendrycks et al. 2021


@dataclass(frozen=True, slots=True)
class Reliability:
    """Reliability diagram: mean confidence and accuracy in each bin of confidence; all zeros in an empty bin.

    Attributes:
        confidence: (bins,) float64, mean confidence of the images in the bin.
        accuracy: (bins,) float64, share of images in the bin whose prediction is right.
        count: (bins,) int64, number of images in the bin.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]

    @property
    def mean_confidence(self) -> float:
        """Mean confidence of all images."""
        return float(np.average(self.confidence, weights=self.count))

    @property
    def mean_accuracy(self) -> float:
        """Share of all images whose prediction is right."""
        return float(np.average(self.accuracy, weights=self.count))


def check(probs: Floats, labels: Ints) -> None:
    """Check that metrics are defined for these arrays.

    Raises:
        InputError: no images, shapes that do not match, or a label outside 0 … K-1 (-1 is an unknown label).
    """
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or not probs.size:
        raise InputError(
            f"probs have shape {probs.shape} and labels {labels.shape};"
            " they must be (N, K) and (N,) with N, K >= 1"
        )
    check_range(int(labels.min()), int(labels.max()), probs.shape[1])


def check_range(low: int, high: int, num_classes: int) -> None:
    """Check that labels from `low` to `high` are classes.

    Raises:
        InputError: a label outside 0 … num_classes - 1.
    """
    if low < 0 or high >= num_classes:
        raise InputError(
            f"labels run from {low} to {high}; with {num_classes} classes they must be in 0 to K-1"
        )


def correct(probs: Floats, labels: Ints) -> NDArray[np.bool_]:
    """(N,) bool, True where the most likely class is the label."""
    check(probs, labels)
    return np.asarray(probs.argmax(axis=1) == labels)


def top_k(probs: Floats, labels: Ints, k: int) -> float:
    """Top-k accuracy: share of images whose label is among the k most likely classes; 1 for K <= k."""
    check(probs, labels)
    of_label = np.take_along_axis(probs, labels[:, None], axis=1)
    earlier = np.arange(probs.shape[1]) < labels[:, None]
    # Number of classes before the label, 0 if it is the first. It equals a stable argsort, but needs no sort.
    rank = ((probs > of_label) | ((probs == of_label) & earlier)).sum(axis=1)
    return float((rank < k).mean())


def nll(probs: Floats, labels: Ints) -> float:
    """Mean negative log-likelihood in nats, with probabilities clipped to the smallest normal float32."""
    check(probs, labels)
    of_label = np.take_along_axis(probs, labels[:, None], axis=1).astype(np.float64)
    # A softmax in float32 can underflow to 0, whose logarithm would be infinite.
    return float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean())


def brier(probs: Floats, labels: Ints) -> float:
    """Brier score: mean squared distance to the one-hot label, 0 (best) to 2 (worst) (Brier 1950)."""
    check(probs, labels)
    of_label = np.take_along_axis(probs, labels[:, None], axis=1).astype(np.float64)[:, 0]
    squares = np.square(probs, dtype=np.float64).sum(axis=1)
    # |probs - onehot|² = |probs|² - 2 probs[label] + 1, without the one-hot array.
    return float((squares - 2 * of_label + 1).mean())


def reliability(probs: Floats, labels: Ints, bins: int) -> Reliability:
    """Reliability diagram with bins (b/bins, (b+1)/bins] of equal width, for the largest probability.

    Raises:
        InputError: fewer than one bin, or arrays that do not match.
    """
    if bins < 1:
        raise InputError(f"evaluate.ece_bins is {bins}; it must be at least 1")
    right = correct(probs, labels)
    confidence = probs.max(axis=1).astype(np.float64)
    inner_edges = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    rows = np.digitize(confidence, inner_edges, right=True)
    count = np.bincount(rows, minlength=bins)
    filled = np.maximum(count, 1)  # avoids a division by zero in empty bins
    return Reliability(
        np.bincount(rows, weights=confidence, minlength=bins) / filled,
        np.bincount(rows, weights=right, minlength=bins) / filled,
        count.astype(np.int64),
    )


def confusion(probs: Floats, labels: Ints) -> NDArray[np.int64]:
    """Confusion matrix (K, K) int64: number of images by true class (row) and predicted class (column)."""
    classes = probs.shape[1]
    cells = labels * classes + probs.argmax(axis=1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def worst_pairs(probs: Floats, labels: Ints, limit: int) -> list[tuple[int, int, int, int]]:
    """The `limit` most frequent confusions, most frequent first.

    Returns:
        (true class, predicted class, number of images, number of images of the true class) each.
    """
    predicted = probs.argmax(axis=1)
    wrong = predicted != labels
    cells, counts = np.unique(labels[wrong] * probs.shape[1] + predicted[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:limit]
    pairs = [(*divmod(int(cells[index]), probs.shape[1]), int(counts[index])) for index in order]
    return [(true, instead, count, int((labels == true).sum())) for true, instead, count in pairs]


def ece(probs: Floats, labels: Ints, bins: int) -> float:
    """Expected calibration error (ECE): mean of |accuracy - confidence| over bins of equal width.

    Each bin is weighted by its number of images (Guo et al. 2017).
    """
    table = reliability(probs, labels, bins)
    return float((table.count * np.abs(table.accuracy - table.confidence)).sum() / table.count.sum())


def adaptive_reliability(probs: Floats, labels: Ints, size: int = RMS_BIN) -> Reliability:
    """Reliability diagram with bins of `size` images, sorted by confidence; the last bin also has the rest.

    Raises:
        InputError: arrays that do not match, or a size below 1.
    """
    if size < 1:
        raise InputError(f"the bin size of the RMS calibration error is {size}; it must be at least 1 image")
    confidence, right = _by_confidence(probs, labels)
    bins = max(len(confidence) // size, 1)
    rows = np.minimum(np.arange(len(confidence)) // size, bins - 1)
    count = np.bincount(rows)
    return Reliability(np.bincount(rows, confidence) / count, np.bincount(rows, right) / count, count)


def rms_calibration(probs: Floats, labels: Ints, size: int = RMS_BIN) -> float:
    """RMS calibration error: root mean square of accuracy - confidence over bins of `size` images.

    The bins are those of `adaptive_reliability`, each weighted by its number of images.
    """
    return _rms(adaptive_reliability(probs, labels, size), slice(None))


def rms_official(probs: Floats, labels: Ints, size: int = RMS_BIN) -> float:
    """`rms_calibration` as ImageNet-A's script computes it: the most confident bin is left out of the sum.

    Raises:
        InputError: fewer images than two bins need.
    """
    table = adaptive_reliability(probs, labels, size)
    if len(table.count) < 2:
        raise InputError(
            f"rms_official needs at least two bins of {size} images, because it leaves out one;"
            f" there are {len(labels)} images"
        )
    return _rms(table, slice(-1))


def aurra(probs: Floats, labels: Ints) -> float:
    """Area under the response rate accuracy curve (AURRA).

    It is the mean over k = 1 … N of the accuracy of the k most confident predictions.
    """
    _, right = _by_confidence(probs, labels)
    return float((np.cumsum(right[::-1]) / np.arange(1, len(right) + 1)).mean())


def real_accuracy(predictions: Ints, label_sets: Sequence[Collection[int]]) -> float:
    """ReaL accuracy: share of images whose predicted class is in their label set.

    Images with an empty label set are left out.

    Args:
        predictions: (N,) classes.
        label_sets: N collections of classes (Beyer et al. 2020).

    Raises:
        InputError: lengths differ, or no image has a label.
    """
    if len(predictions) != len(label_sets):
        raise InputError(
            f"ReaL has {len(label_sets)} label sets for {len(predictions)} predictions; give one for each"
        )
    hits = [int(cls) in labels for cls, labels in zip(predictions, label_sets, strict=True) if labels]
    if not hits:
        raise InputError("no image has a ReaL label; the accuracy is undefined")
    return sum(hits) / len(hits)


def _by_confidence(probs: Floats, labels: Ints) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) confidence in ascending order, and (N,) accuracy of each image.

    Images of equal confidence all get their mean accuracy, so that the result does not depend on the order of
    the images in the data set.
    """
    right = correct(probs, labels)
    values, group, count = np.unique(probs.max(axis=1), return_inverse=True, return_counts=True)
    shared = np.bincount(group, weights=right) / count
    return np.repeat(values.astype(np.float64), count), np.repeat(shared, count)


def _rms(table: Reliability, bins: slice) -> float:
    """RMS error summed over some bins, divided by the number of images in all bins."""
    squared = np.square(table.accuracy - table.confidence)[bins] * table.count[bins]
    return math.sqrt(float(squared.sum()) / float(table.count.sum()))
