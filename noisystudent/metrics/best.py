"""Which of several models to use, by their predictions on val."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from noisystudent.config import EvaluateConfig
from noisystudent.metrics import paired
from noisystudent.metrics.power import LEAST_IMAGES
from noisystudent.metrics.reasons import listed


def best(
    hits: Mapping[str, NDArray[np.bool_]], default: str, config: EvaluateConfig, seed: int
) -> tuple[str, str]:
    """Name of the model to use, and why, in a few words.

    It is `default` unless others are better on the same images, with an interval above 0 and a significant
    McNemar test, as in the verdict; then it is the most accurate of these. The largest of several noisy
    accuracies alone would be chosen by luck. With fewer than `LEAST_IMAGES` images nothing is compared.

    Args:
        hits: name of a model -> (N,) bool, True where it is right, on the same images of val.
        default: name of the model that is used if val cannot tell.
        config: level of the interval and number of resamples.
        seed: seed of the bootstrap.
    """
    count = len(hits[default])
    if len(hits) > 1 and count < LEAST_IMAGES:
        return default, f"val has {count:,} images, too few to choose a model: the last student is used"
    rivals = {
        name: paired.compare(own, hits[default], config, seed)
        for name, own in hits.items()
        if name != default
    }
    better = [name for name, rival in rivals.items() if paired.above(rival, config.level)]
    if better:
        name = max(better, key=lambda name: rivals[name]["difference"])
        gain, low, high = (100 * rivals[name][key] for key in ("difference", "low", "high"))
        return name, (
            f"on val it is better than {default} by {gain:.2f} points ({config.level:.0%} interval"
            f" {low:+.2f} to {high:+.2f})"
        )
    equal = [name for name, rival in rivals.items() if not paired.below(rival, config.level)]
    if equal:
        return (
            default,
            f"the {count:,} images of val show no difference from {listed(equal)}: the last student is used",
        )
    return default, f"on val it is the best of {len(hits)} models" if rivals else ""
