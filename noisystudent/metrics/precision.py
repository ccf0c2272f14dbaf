"""Expected share of right pseudo-labels: how often confident predictions are right on images with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from noisystudent.errors import InputError
from noisystudent.metrics.classification import Floats, Ints

CURVE = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Confidences at which `curve` is computed."""

GRID = (*(step / 100 for step in range(100)), 0.995, 0.999)
"""Thresholds that the report offers; `bins` counts images between them."""

WIDE = 0.2
"""An interval of shares that is wider than this says little: about 60 images at a share of 0.8."""


LEAST_SHARE = 0.1
"""Share of the images that `widest` keeps at least where no choice is precise enough."""

Source = Literal["val", "out of fold"]


@dataclass(frozen=True, slots=True)
class Precision:
    """How many labelled images have enough confidence, and how many of these are predicted correctly.

    Attributes:
        images: number of labelled images. The model must not have been trained on them.
        kept: number of those with enough confidence.
        right: number of the kept ones whose most likely class is the label.
        level: confidence level of the interval.
        source: val, or out of fold: the labelled images, each predicted by a model that has not seen it.
    """

    images: int
    kept: int
    right: int
    level: float = 0.95
    source: Source = "val"

    @property
    def share(self) -> float | None:
        """right / kept; None if no image is kept."""
        return self.right / self.kept if self.kept else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the share; 0 to 1 if no image is kept."""
        return wilson(self.right, self.kept, self.level) if self.kept else (0.0, 1.0)

    @property
    def too_few(self) -> bool:
        """True if the interval is wider than `WIDE`."""
        low, high = self.interval
        return high - low > WIDE

    def sentence(self) -> str:
        """The share with its interval and the number of images behind it, in words."""
        if self.share is None:
            return (
                f"none of the {self.images:,} {self._named} has as much confidence as the kept images, so the"
                " share of right labels is not known"
            )
        low, high = self.interval
        small = "; these are too few to tell" if self.too_few else ""
        return (
            f"about {self.share:.1%} of the kept labels are expected to be right ({self.level:.0%} interval"
            f" {low:.1%} to {high:.1%}, from {self.kept:,} of {self.images:,} {self._named} with as much"
            f" confidence){small}"
        )

    @property
    def _named(self) -> str:
        return "val images" if self.source == "val" else "labelled images, out of fold,"


def wilson(hits: int, images: int, level: float) -> tuple[float, float]:
    """Wilson's interval of the share hits / images (Wilson 1927), which contains the share itself."""
    interval = stats.binomtest(hits, images).proportion_ci(level, method="wilson")
    # Rounding can put an end of the interval on the wrong side of a share of 0 or 1.
    return min(float(interval.low), hits / images), max(float(interval.high), hits / images)


def precision_above(
    confidence: Floats,
    right: NDArray[np.bool_],
    threshold: Floats | float,
    level: float = 0.95,
    source: Source = "val",
) -> Precision:
    """Precision of the images whose confidence is at least a threshold.

    It is an estimate for other images with such confidences, if they are drawn as these are. Images of no
    class, which a pool may have, are not among them and make the estimate too high.

    Args:
        confidence: (N,) probability of the most likely class.
        right: (N,) True if that class is the label.
        threshold: of all images, or (N,) of each. Infinity excludes an image.
        level: confidence level of the interval.
        source: where the labelled images are from.

    Raises:
        InputError: the arrays do not match.
    """
    if confidence.ndim != 1 or right.shape != confidence.shape:
        raise InputError(
            f"confidence has shape {confidence.shape} and right {right.shape}; both must be (N,)"
        )
    kept = confidence >= threshold
    return Precision(len(confidence), int(kept.sum()), int((kept & right).sum()), level, source)


def curve(
    confidence: Floats, right: NDArray[np.bool_], thresholds: Sequence[float] = CURVE
) -> list[dict[str, float]]:
    """For each threshold {threshold, kept, right}: numbers of images as in `precision_above`."""
    measured = [(threshold, precision_above(confidence, right, threshold)) for threshold in thresholds]
    return [{"threshold": threshold, "kept": each.kept, "right": each.right} for threshold, each in measured]


def bins(label: Ints, confidence: Floats, num_classes: int) -> NDArray[np.int64]:
    """Count the images of each class between the thresholds of `GRID`.

    Args:
        label: (N,) most likely class of each image.
        confidence: (N,) its probability.
        num_classes: number of classes, K.

    Returns:
        (K, len(GRID) + 1). The images in column b are above exactly the first b thresholds. So the images
        above threshold t are the sum of the columns from t + 1 on.
    """
    columns = len(GRID) + 1
    passed = np.searchsorted(np.array(GRID), confidence.astype(np.float64), side="left")
    return np.bincount(label * columns + passed, minlength=num_classes * columns).reshape(-1, columns)


def by_threshold(rows: Sequence[Mapping[str, float]]) -> str:
    """The rows of `curve` in words; without those that keep the same images as the row before."""
    changed = [row for at, row in enumerate(rows) if at == 0 or row["kept"] != rows[at - 1]["kept"]]
    return ", ".join(
        f"{row['right'] / row['kept']:.1%} of the {row['kept']:,} from {row['threshold']:g} on"
        for row in changed
        if row["kept"]
    )


def widest(choices: Mapping[float, Precision], least: float) -> float | None:
    """The choice that keeps the most images with a precision of surely at least `least`.

    That is a lower end of the interval of at least `least`. Where no choice has it: the most precise one that
    keeps a tenth of the images. Of equal choices it is the first. None: no choice keeps a tenth.

    Args:
        choices: a threshold, or another number -> the precision that it gives.
        least: smallest precision.
    """
    sure = [value for value, choice in choices.items() if choice.kept and choice.interval[0] >= least]
    if sure:
        return max(sure, key=lambda value: choices[value].kept)
    many = [value for value, choice in choices.items() if choice.kept >= LEAST_SHARE * choice.images > 0]
    return max(many, key=lambda value: choices[value].share or 0.0, default=None)
