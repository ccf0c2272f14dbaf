"""Paired statistics between models on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from noisystudent.config import EvaluateConfig
from noisystudent.errors import InputError
from noisystudent.runtime import generator


class Comparison(TypedDict):
    """Accuracy of one model minus another's on the same n images, its interval and McNemar's p-value.

    `wins` is the number of images on which only the first model is right, `losses` only the second.
    """

    difference: float
    low: float
    high: float
    p_value: float
    wins: int
    losses: int
    n: int


class SeedSummary(NamedTuple):
    """Mean of a paired difference over seeds and its t interval."""

    mean: float
    low: float
    high: float


def compare(
    first: NDArray[np.bool_], second: NDArray[np.bool_], config: EvaluateConfig, seed: int
) -> Comparison:
    """Paired comparison of two models.

    The interval is a percentile bootstrap over images. The difference of an image is -1, 0 or +1, so
    resampling the images equals one multinomial draw of three counts: the same distribution at 1/N of the
    cost. The ends of the interval are rounded outwards to drawn values. The p-value is McNemar's, exact and
    two-sided.

    Args:
        first: (N,) bool, True where the first model is right.
        second: (N,) bool of the second model, for the same images in the same order.
        config: level of the interval and number of resamples.
        seed: seed of the bootstrap.

    Raises:
        InputError: the arrays do not match or are empty.
    """
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise InputError(
            f"hits have shapes {first.shape} and {second.shape}; they must be two arrays (N,) with N >= 1"
        )
    n = first.size
    wins, losses = int((first & ~second).sum()), int((~first & second).sum())
    shares = np.array([losses, n - wins - losses, wins]) / n
    counts = generator(seed, "bootstrap").multinomial(n, shares, size=config.resamples)
    differences = (counts[:, 2] - counts[:, 0]) / n
    tail = (1 - config.level) / 2
    return Comparison(
        difference=(wins - losses) / n,
        low=float(np.quantile(differences, tail, method="lower")),
        high=float(np.quantile(differences, 1 - tail, method="higher")),
        p_value=mcnemar(wins, losses),
        wins=wins,
        losses=losses,
        n=n,
    )


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p-value for wins and losses being equally likely (McNemar 1947); 1 if both are 0."""
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def paired_over_seeds(differences: Sequence[float], level: float) -> SeedSummary:
    """Mean of the differences of several seeds and its Student's t interval.

    In contrast to `compare`, this interval accounts for the training seed.

    Args:
        differences: one difference for each seed.
        level: confidence level of the interval.

    Raises:
        InputError: fewer than two seeds, or a level outside (0, 1).
    """
    if len(differences) < 2:
        raise InputError(f"the number of seeds is {len(differences)}; it must be at least 2")
    if not 0.0 < level < 1.0:
        raise InputError(f"level is {level}; it must be between 0 and 1")
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return SeedSummary(mean, mean - half, mean + half)


def above(comparison: Comparison, level: float) -> bool:
    """True if the first model is significantly better than the other."""
    return comparison["low"] > 0 and comparison["p_value"] < 1 - level


def below(comparison: Comparison, level: float) -> bool:
    """True if the first model is significantly worse than the other."""
    return comparison["high"] < 0 and comparison["p_value"] < 1 - level
