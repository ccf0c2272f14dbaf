"""Choose the threshold of a selection, or the strength of adaptive ones, on images with known labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from noisystudent.config import SelectionConfig
from noisystudent.metrics import classification
from noisystudent.metrics.power import LEAST_IMAGES
from noisystudent.metrics.precision import Precision, precision_above, widest
from noisystudent.metrics.reasons import LOW_PSEUDO_ACCURACY
from noisystudent.selection.thresholds import of_images

THRESHOLDS = (*(number / 20 for number in range(20)), 0.99)  # multiples of 0.01, which mode official needs
STRENGTHS = tuple(number / 4 for number in range(1, 9))


def choose(
    config: SelectionConfig, probs: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[SelectionConfig, str]:
    """Choose `selection.threshold`, or `selection.strength` in mode adaptive, and say why.

    It is the value that keeps the most images if at least 80 % of the kept ones are surely right: see
    `widest`. The balancing of the classes and `top_fraction` come later, so they are not part of the choice.

    Args:
        config: fields of `selection`.
        probs: (N, K) probabilities that teachers predict for images that they have not seen.
        labels: (N,) their labels.

    Returns:
        The configuration with the chosen value, and a sentence. It is the given configuration in mode all,
        with fewer than `LEAST_IMAGES` images, and where no value keeps a tenth of them.
    """
    if config.mode == "all":
        return config, "selection.mode is all, so no threshold is chosen"
    adaptive = config.mode == "adaptive"
    name = "strength" if adaptive else "threshold"
    given = f"selection.{name} stays {config.strength if adaptive else config.threshold:g}"
    if len(labels) < LEAST_IMAGES:
        return config, f"{given}: {len(labels):,} labelled images are too few to choose on"
    values = STRENGTHS if adaptive else [value for value in THRESHOLDS if value < config.max_confidence]
    settings = {
        value: replace(config, strength=value) if adaptive else replace(config, threshold=value)
        for value in values
    }
    choices = {value: kept(setting, probs, labels) for value, setting in settings.items()}
    chosen = widest(choices, LOW_PSEUDO_ACCURACY)
    if chosen is None:
        return config, f"{given}: no value keeps a tenth of the labelled images"
    best, level = choices[chosen], f"{LOW_PSEUDO_ACCURACY:.0%}"
    low, high = best.interval
    if low >= LOW_PSEUDO_ACCURACY:
        why = f"of the values with a lower end of at least {level} it keeps the most"
    else:
        why = f"no value has a lower end of {level}, and this one has the largest share"
    sentence = (
        f"selection.{name} is {chosen:g}, chosen out of fold: it keeps {best.kept:,} of {best.images:,}"
        f" labelled images, and {best.right / best.kept:.1%} of them are predicted right ({best.level:.0%}"
        f" interval {low:.1%} to {high:.1%}); {why}"
    )
    return settings[chosen], sentence


def kept(config: SelectionConfig, probs: NDArray[np.float32], labels: NDArray[np.int64]) -> Precision:
    """How many of some labelled images the thresholds of a selection keep, and how many of these are right.

    Args:
        config: fields of `selection`; the mode is not all.
        probs: (N, K) probabilities.
        labels: (N,) labels.
    """
    label, confidence = probs.argmax(axis=1), probs.max(axis=1)
    threshold = of_images(config, label, confidence, probs.shape[1])[label]
    if config.mode != "official":
        threshold = np.nextafter(threshold, np.inf)  # the confidence must be above it
    threshold[confidence > config.max_confidence] = np.inf
    right = classification.correct(probs, labels)
    return precision_above(confidence.astype(np.float64), right, threshold, source="out of fold")
