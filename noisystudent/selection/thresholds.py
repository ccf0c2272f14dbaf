"""Thresholds of the confidence: one for all classes, or one for each class from the teacher's confidences.

They are computed as exact fractions, and rounded so that comparing a float32 with them in float64 is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import duckdb
import numpy as np
from numpy.typing import NDArray

from noisystudent.config import SelectionConfig

# Confidences are summed as whole numbers of this unit: sums of floats would depend on the order in which
# threads add. A float32 has 24 bits, so the numbers are exact for confidences of 2^-39 and more.
_UNITS = 1 << 62


def fixed(config: SelectionConfig, num_classes: int) -> float:
    """Threshold of all classes; a confidence must be above it."""
    if not config.relative:
        return config.threshold
    chance = Fraction(1, num_classes)
    threshold = chance + Fraction(str(config.threshold)) * (1 - chance)
    rounded = float(threshold)
    # Rounded down, so that a float64 is above the result only if it is above the fraction.
    return rounded if rounded <= threshold else math.nextafter(rounded, 0)


def adaptive(connection: duckdb.DuckDBPyConnection, strength: float, num_classes: int) -> NDArray[np.float64]:
    """Threshold of each class, from the mean confidence of the candidates.

    With the mean confidence m of all candidates and m_c of those that are predicted as class c, the
    threshold of c is m_c / (largest m_c) * m: FreeMatch (arXiv 2205.07246) on a whole pool, once
    for each teacher, with the class means of SST (arXiv 2506.00467). All confidences, and the strength, are
    counted from chance, 1 / K, so that the rule is the same for 2 classes and for 1,000.

    The images are then balanced as in mode paper. With a large `per_class` and without `duplicate`, every
    image that reaches the threshold of its class is kept once, as in both papers.

    Args:
        connection: connection from `database`, with the view `candidates`.
        strength: factor of the thresholds. Up to 1 no threshold is above the mean of its class.
        num_classes: number of classes, K.

    Returns:
        (K,) float64. A confidence is above the result exactly if it is at least the threshold: many
        confidences of a sure teacher are 1, and so may be the threshold. 1 / K for a class without images.
    """
    sums = connection.execute(
        f"SELECT label, count(*), sum((confidence::DOUBLE * {_UNITS})::BIGINT) FROM candidates GROUP BY label"
    ).fetchall()
    return _adaptive(sums, strength, num_classes)


def of_images(
    config: SelectionConfig, label: NDArray[np.int64], confidence: NDArray[np.float32], num_classes: int
) -> NDArray[np.float64]:
    """Threshold of each class if these images were the pool.

    Args:
        config: fields of `selection`; the mode is not all.
        label: (n,) most likely class of each image.
        confidence: (n,) its probability.
        num_classes: number of classes, K.

    Returns:
        (K,) float64; a confidence is kept if it is above the result, in mode official also if it is equal.
    """
    if config.mode != "adaptive":
        return np.full(num_classes, fixed(config, num_classes))
    candidates = confidence <= config.max_confidence
    units = (confidence.astype(np.float64) * _UNITS).astype(np.int64)
    sums = [
        (number, int(own.sum()), sum(units[own].tolist()))
        for number in range(num_classes)
        if (own := candidates & (label == number)).any()
    ]
    return _adaptive(sums, config.strength, num_classes)


def _adaptive(sums: Sequence[Sequence[int]], strength: float, num_classes: int) -> NDArray[np.float64]:
    """(K,) thresholds from (class, images, sum of their confidences in units) of each predicted class."""
    chance = Fraction(1, num_classes)

    def above_chance(images: int, units: int) -> Fraction:
        return max(Fraction(int(units), images * _UNITS) - chance, Fraction(0)) if images else Fraction(0)

    means = {label: above_chance(images, units) for label, images, units in sums}
    mean = above_chance(sum(images for _, images, _ in sums), sum(units for _, _, units in sums))
    largest = max(means.values(), default=Fraction(0))
    scale = Fraction(str(strength)) * mean / largest if largest else Fraction(0)
    thresholds = [chance + scale * means.get(label, Fraction(0)) for label in range(num_classes)]
    return np.array([_just_below(threshold) for threshold in thresholds])


def without_effect(config: SelectionConfig, num_classes: int) -> str | None:
    """A sentence if every confidence of K classes is above the threshold, otherwise None."""
    uses_threshold = config.mode in ("paper", "official", "threshold") and not config.relative
    if not (uses_threshold and 0 < config.threshold < 1 / num_classes):
        return None
    return (
        f"selection.threshold is {config.threshold:g}, but the largest of {num_classes} probabilities is at"
        f" least {1 / num_classes:.3g}, so every image is above it; set selection.relative to true, or"
        " increase the threshold"
    )


def _just_below(threshold: Fraction) -> float:
    """The largest float64 below a positive fraction."""
    rounded = float(threshold)
    return rounded if rounded < threshold else math.nextafter(rounded, 0)
