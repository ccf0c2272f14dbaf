"""How small a difference between two models a number of images can show, and how many are too few."""

from __future__ import annotations

import math

from scipy import stats

from noisystudent.metrics.paired import Comparison

LEAST_IMAGES = 50
"""Number of labelled images below which nothing is chosen by a model's predictions on them."""

POWER = 0.8
"""Probability with which a difference of the detectable size is found."""

GAIN_WORTH_FINDING = 0.01
"""A set of images is too small if it does not detect a gain of one percentage point with `POWER`."""

# Before the training it is not known on how many images two models differ. In runs where much is to be
# gained it is about a fifth, and a set that misses a difference of five points says little about them.
_DIFFERING = 0.2
_LARGE = 0.05


def differing(comparison: Comparison) -> float:
    """Share of the images on which only one of the two compared models is right.

    At least one image: without any observed disagreement the true share of disagreements is still not 0.
    """
    return max(comparison["wins"] + comparison["losses"], 1) / comparison["n"]


def detectable(disagreeing: float, images: int, level: float) -> float:
    """Smallest difference in accuracy, at most 1, that is found with a probability of `POWER`.

    It is (z_level + z_power) * sqrt(disagreeing / images), the normal approximation of McNemar's test (Connor
    1987). For a few images this is above 1, which means that no difference is found.

    Args:
        disagreeing: share of the images on which only one of the two models is right.
        images: number of images.
        level: confidence level of the test.
    """
    return min(1.0, _z_sum(level) * math.sqrt(disagreeing / images))


def images_needed(disagreeing: float, difference: float, level: float) -> int:
    """Images that show a difference with a probability of `POWER`; see `detectable` for the arguments."""
    return math.ceil(disagreeing * (_z_sum(level) / difference) ** 2)


def too_small(images: int, level: float, *, folds: bool) -> str | None:
    """A sentence if val has too few images to tell two models apart, otherwise None.

    Args:
        images: number of val images.
        level: confidence level of the test.
        folds: True: the run has folds, so the sentence does not propose them.
    """
    smallest = detectable(_DIFFERING, images, level)
    if smallest <= _LARGE:
        return None
    nothing = (
        f"; on fewer than {LEAST_IMAGES} images nothing is chosen: no temperature and no best model, and no"
        f" student is compared with its teacher{'' if folds else '; --folds 5 chooses on the other labels'}"
    )
    return (
        f"val has {images:,} images: two models that differ on one in {1 / _DIFFERING:.0f} of them are told"
        f" apart only if their accuracies differ by {100 * smallest:.0f} points or more"
        f"{nothing if images < LEAST_IMAGES else ''}; give more val images"
    )


def _z_sum(level: float) -> float:
    return float(stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(POWER))
