"""What models are shown in a test: clean, corrupted and perturbed images, as often as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.evaluate import robustness
from noisystudent.evaluate.corruptions import Frost, corrupt
from noisystudent.evaluate.perturbations import sequence

_SEQUENCES = 8  # made at a time

Labeled = tuple[Tensor, NDArray[np.int64]]
"""Images (B, 3, S, S) uint8 on the models' device and their labels (B,)."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """What models are shown; everything can be read from its beginning any number of times.

    Attributes:
        clean: the images in order.
        corrupted: (corruption, severity) -> the same, corrupted.
        perturbed: perturbation -> sequences (B, T, 3, S, S) uint8.
        corruptions: those that can be had.
    """

    clean: Callable[[], Iterable[Labeled]]
    corrupted: Callable[[str, int], Iterable[Labeled]]
    perturbed: Callable[[str], Iterable[Tensor]]
    corruptions: tuple[str, ...] = robustness.CORRUPTIONS


def remembered(
    read: Callable[[], Iterable[Tensor]], nbytes: int, limit: int = 2**31
) -> Callable[[], Iterable[Tensor]]:
    """The same batches, kept in memory from the first reading on if their `nbytes` are few enough."""
    kept: list[Tensor] = []

    def again() -> Iterable[Tensor]:
        if not kept:
            kept.extend(read())
        return kept

    return again if nbytes <= limit else read


def generated(
    clean: Callable[[], Iterable[Tensor]],
    wholes: Callable[[], Iterable[Tensor]],
    labels: NDArray[np.int64],
    *,
    seed: int,
    frost: Frost | None,
    jpeg: bool = False,
    rows: NDArray[np.int64] | None = None,
) -> Pictures:
    """Corrupted and perturbed copies made on the way, on the device of the images.

    Args:
        clean: batches (B, 3, S, S) uint8 of clean views, from the beginning at each call.
        wholes: the same images as (B, 3, H, W), to be cropped to S after they moved: what lies around the
            middle moves into the picture. H and W may be S, and differ from batch to batch.
        labels: (N,) in the order of the batches.
        seed: of everything random.
        frost: photographs; None leaves frost out.
        jpeg: save corrupted images as JPEG of quality 85, as the published ImageNet-C was.
        rows: (N,) numbers of the images in their data set, by which each has its own chance, whichever others
            are beside it; None counts them.
    """
    numbers = np.arange(len(labels)) if rows is None else rows

    def labeled() -> Iterator[Labeled]:
        for images, part in _placed(clean()):
            yield images, labels[part]

    def corrupted(name: str, severity: int) -> Iterator[Labeled]:
        for images, part in _placed(clean()):
            made = corrupt(images, name, severity, seed=seed, rows=numbers[part], frost=frost, jpeg=jpeg)
            yield made, labels[part]

    def perturbed(name: str) -> Iterator[Tensor]:
        side = next(iter(clean())).shape[-1]
        for images, part in _placed(wholes()):
            own = numbers[part]
            for at in range(0, len(images), _SEQUENCES):
                few = slice(at, at + _SEQUENCES)
                yield sequence(images[few], name, seed=seed, rows=own[few], crop=side)

    names = tuple(name for name in robustness.CORRUPTIONS if name != "frost" or frost is not None)
    return Pictures(labeled, corrupted, perturbed, names)


def _placed(batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, slice]]:
    first = 0
    for images in batches:
        yield images, slice(first, first + len(images))
        first += len(images)
