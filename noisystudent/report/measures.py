"""What the figures need of the predictions: reliability bins, the confusion matrix, its largest entries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predictions binned by confidence into equal widths; empty bins are left out.

    Attributes:
        confidence: (B,) float64, mean confidence of each bin.
        accuracy: (B,) float64, share of each bin that is right.
        counts: (B,) int64, images of each bin.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def mean_confidence(self) -> float:
        """Mean confidence of all images."""
        return float(np.average(self.confidence, weights=self.counts))

    @property
    def mean_accuracy(self) -> float:
        """Share of all images that is right."""
        return float(np.average(self.accuracy, weights=self.counts))


def reliability(probs: NDArray[np.float32], labels: NDArray[np.int64], bins: int = BINS) -> Reliability:
    """Bin the predictions by the probability of the most likely class.

    Args:
        probs: (N, K) rows that sum to 1.
        labels: (N,) in [0, K).
        bins: how many, over [0, 1], closed above as in Guo et al. 2017.
    """
    confidence = probs.max(axis=1).astype(np.float64)
    right = (probs.argmax(axis=1) == labels).astype(np.float64)
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    filled = counts > 0
    sums = (np.bincount(index, weights=values, minlength=bins)[filled] for values in (confidence, right))
    mean_confidence, accuracy = (total / counts[filled] for total in sums)
    return Reliability(confidence=mean_confidence, accuracy=accuracy, counts=counts[filled])


def confusion(probs: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the images of each true class (row) by predicted class (column).

    Returns:
        (K, K) int64 whose sum is N.
    """
    classes = probs.shape[1]
    cells = labels * classes + probs.argmax(axis=1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def worst_pairs(
    probs: NDArray[np.float32], labels: NDArray[np.int64], limit: int
) -> list[tuple[int, int, int, int]]:
    """List the most frequent confusions: true class, predicted class, images, images of the true class."""
    predicted = probs.argmax(axis=1)
    wrong = predicted != labels
    cells, counts = np.unique(labels[wrong] * probs.shape[1] + predicted[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:limit]
    pairs = [(*divmod(int(cells[at]), probs.shape[1]), int(counts[at])) for at in order]
    return [(true, said, count, int((labels == true).sum())) for true, said, count in pairs]
