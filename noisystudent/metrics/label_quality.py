"""Given labels that may be wrong, by confident learning (Northcutt et al. 2021, arXiv 1911.00068)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from noisystudent.metrics import classification
from noisystudent.metrics.classification import Floats, Ints

_ROUNDING = 1e-6  # of a probability, when it is compared with a threshold


def self_confidence(probs: Floats, labels: Ints) -> NDArray[np.float64]:
    """(N,) the probability of each given label."""
    classification.check(probs, labels)
    return probs[np.arange(len(labels)), labels].astype(np.float64)


def thresholds(probs: Floats, labels: Ints) -> NDArray[np.float64]:
    """(K,) mean self-confidence of the images of each class; infinite for a class without images."""
    counts = np.bincount(labels, minlength=probs.shape[1])
    sums = np.bincount(labels, self_confidence(probs, labels), minlength=probs.shape[1])
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def suspected(probs: Floats, labels: Ints) -> NDArray[np.int64]:
    """The class that each image seems to have in place of its label, -1 if the label seems right.

    A model is confident of every class whose probability reaches the threshold of the class: the mean
    self-confidence of the images with this label. So a class on which the model is never sure needs less, and
    images that are merely hard are not suspected. A label is suspected if the model is confident of others
    alone, or most of another, and does not predict it.

    Args:
        probs: (N, K) probabilities, of models that were not trained on the label of the image.
        labels: (N,) given labels.

    Returns:
        (N,) class numbers.
    """
    confident = probs >= thresholds(probs, labels) - _ROUNDING
    best = probs.argmax(axis=1)
    # Of several classes the most likely one counts; of one class, that one.
    other = np.where(confident.sum(axis=1) > 1, best, confident.argmax(axis=1))
    wrong = confident.any(axis=1) & (other != labels) & (best != labels)
    return np.where(wrong, other, -1)
