"""Weights of several models whose probabilities are averaged (Yao et al. 2018, arXiv 1704.02030)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from noisystudent.metrics import classification
from noisystudent.metrics.classification import Floats, Ints
from noisystudent.metrics.power import LEAST_IMAGES

_DIGITS = 4  # decimals of a weight; more would depend on how a machine rounds
_STEPS, _CHANGE = 10_000, 1e-9
_TINY = float(np.finfo(np.float32).tiny)


def stacked(probs: Sequence[Floats], labels: Ints) -> tuple[float, ...]:
    """Weights w >= 0 with sum 1 that give the average of the models the least NLL.

    They minimise -mean(log(sum_i w_i p_i(y))) over the images, where p_i(y) is the probability of the label
    by model i: stacking of predictive distributions with the logarithmic score. The objective is convex. The
    steps are those of expectation maximisation for the weights of a mixture,
    w_i <- mean(w_i p_i(y) / sum_j w_j p_j(y)), which never raise it. With fewer than `LEAST_IMAGES` the
    weights are equal.

    Args:
        probs: (N, K) probabilities of each model.
        labels: (N,) labels.
    """
    for each in probs:
        classification.check(each, labels)
    weights = np.full(len(probs), 1 / len(probs))
    if len(labels) < LEAST_IMAGES:
        return tuple(weights.tolist())
    rows = np.arange(len(labels))
    # A softmax in float32 can underflow to 0; as in `classification.nll`.
    right = np.maximum(np.stack([each[rows, labels] for each in probs], axis=1).astype(np.float64), _TINY)
    for _ in range(_STEPS):
        before = weights
        shares = weights * right
        weights = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
        if np.abs(weights - before).max() < _CHANGE:
            break
    weights = weights.round(_DIGITS)
    return tuple((weights / weights.sum()).tolist())


def average(probs: Sequence[Floats], weights: Sequence[float]) -> NDArray[np.float32]:
    """(N, K) the weighted mean of the probabilities of several models; the weights need not sum to 1."""
    if len(probs) == 1:
        return np.asarray(probs[0], np.float32)
    total = sum(weights)
    parts = [(weight / total) * each.astype(np.float64) for each, weight in zip(probs, weights, strict=True)]
    return np.asarray(np.sum(parts, axis=0), np.float32)


def agreement(probs: Sequence[Floats], mean: Floats) -> NDArray[np.float32]:
    """(N,) share of the models for which the most likely class of `mean` has the largest probability, too."""
    label = mean.argmax(axis=1)[:, None]
    agreeing = [np.take_along_axis(each, label, 1)[:, 0] >= each.max(axis=1) for each in probs]
    return np.asarray(np.mean(agreeing, axis=0), np.float32)
