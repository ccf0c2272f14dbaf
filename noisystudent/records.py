"""The currency between stages: plain records, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One joint batch on the device: labelled rows first, then pool rows.

    Attributes:
        images: (B, 3, S, S) uint8, un-noised.
        labels: (L,) int64, the given labels of rows 0 … L-1.
        pool_targets: (B-L, K) float32, the pseudo-labels of the other rows; each row sums to 1.
    """

    images: Tensor
    labels: Tensor
    pool_targets: Tensor


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """A folder of Parquet parts written by `pseudo_label.label_images`.

    Columns of a part: `row` int64 (row of the pool), `id` string, `content_hash` binary(16), `label` int32
    (most likely class), `confidence` float32 (its probability), and the probabilities: `probs` as a
    fixed-size list of `num_classes` float16, or above 256 classes `top_classes` int32 and `top_probs`
    float16 (fixed-size lists of k, most likely first) with `tail` float32, the mass of all other classes.
    """

    path: Path
    num_classes: int


@dataclass(frozen=True, slots=True)
class Selection:
    """One Parquet file written by `selection.select`: a row a pool image.

    Columns: `row` int64, `content_hash` binary(16), `label` int32, `confidence` float32, `repeats` int32
    (0 when not kept), `reason` string: kept, below_threshold, over_quota or below_top_fraction.
    """

    path: Path
    num_classes: int


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of one model on one test, as `evaluate.suite` reports it."""

    test: str
    name: str
    value: float
