"""Records that pass between stages: data without behaviour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    # needed for types only; importing torch takes seconds
    from torch import Tensor

Predict: TypeAlias = "Callable[[Tensor], Tensor]"
"""Function from images (B, 3, S, S) uint8 to logits (B, K), in evaluation mode and without noise."""


class Vote(NamedTuple):
    """What several teachers predict for a batch of images.

    Attributes:
        probs: (B, K) float32, the mean of their probabilities; NaN where a teacher has diverged.
        agreement: (B,) float32, the share of the teachers for which the most likely class of the mean has the
            largest probability, too. None: there is one teacher.
        energy: (B,) float32, the mean of their energies, see `PseudoLabels`. None: none of them has logits.
    """

    probs: Tensor
    agreement: Tensor | None
    energy: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """One joint batch on the device: first the labelled images, then the pool images.

    Attributes:
        images: (B, 3, S, S) uint8; for a head, features (B, F) float32.
        labels: (L,) int64, the given labels of rows 0 … L-1.
        pool_targets: (B-L, K) float32, the pseudo-labels of the other rows. Each row sums to 1.
        pool_views: (B-L, 3, S, S) uint8 or (B-L, F), weakly augmented views of the other rows. None: nothing
            labels them in the step, or the step makes them itself, as on a GPU.
        blend: partner (B,) int64 and share (B,) float32 of each row. Row i is `share[i]` of itself and the
            rest of row `partner[i]`, and its target, too. None: no rows are blended.
        whole: labelled images and pool images of the batch of all processes, of which this is a part. None:
            this is the whole batch.
    """

    images: Tensor
    labels: Tensor
    pool_targets: Tensor
    pool_views: Tensor | None = None
    blend: tuple[Tensor, Tensor] | None = None
    whole: tuple[int, int] | None = None

    @property
    def counts(self) -> tuple[int, int]:
        """Labelled images and pool images of the whole batch."""
        return self.whole or (len(self.labels), len(self.pool_targets))


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """A folder of Parquet files ("parts"), with one row for each pool image.

    `pseudo_label.label_images` writes it.

    Columns of a part:
        row: int64, row of the pool.
        id: string.
        content_hash: binary(16).
        label: int32, the most likely class.
        confidence: float32, the probability of that class, at temperature 1.
        energy: float32, log(sum(exp(logits))), which is low for images unlike the labelled ones (Liu et al.
            2020, arXiv 2010.03759, with the other sign); of several teachers the mean; NaN without logits.
        agreement: float32, share of the teachers that predict this class; only with several teachers.
        probs: fixed-size list of `num_classes` float16, the probabilities at the temperature of
            `pseudo_label`; only up to 256 classes.
        top_classes, top_probs: fixed-size lists of k int32 and k float16, the most likely classes in
            descending order of probability; only above 256 classes.
        tail: float32, total probability of all other classes; only above 256 classes.
    """

    path: Path
    num_classes: int


@dataclass(frozen=True, slots=True)
class Selection:
    """One Parquet file written by `selection.select`, with one row for each pool image.

    Columns: `row` int64, `content_hash` binary(16), `label` int32, `confidence` float32, `junk` bool
    (whether the energy is below the limit), `repeats` int32 (how often the image occurs in an epoch of the
    pool; 0 if not kept), `reason` string, one of `selection.decisions.REASONS`.
    """

    path: Path
    num_classes: int
