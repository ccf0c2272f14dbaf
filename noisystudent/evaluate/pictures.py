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
) -> Pictures:
    """Corrupted and perturbed copies made on the way, on the device of the images.

    Args:
        clean: batches (B, 3, S, S) uint8 of clean views, from the beginning at each call.
        wholes: the same images as (B, 3, W, W) whose middle S are the clean views: perturbations move what
            lies around into the picture. W may be S.
        labels: (N,) in the order of the batches.
        seed: of everything random.
        frost: photographs; None leaves frost out.
    """

    def labeled() -> Iterator[Labeled]:
        for images, rows in _numbered(clean()):
            yield images, labels[rows]

    def corrupted(name: str, severity: int) -> Iterator[Labeled]:
        for images, rows in _numbered(clean()):
            yield corrupt(images, name, severity, seed=seed, rows=rows, frost=frost), labels[rows]

    def perturbed(name: str) -> Iterator[Tensor]:
        side = next(iter(clean())).shape[-1]
        for images, rows in _numbered(wholes()):
            few = zip(
                images.split(_SEQUENCES),
                np.split(rows, range(_SEQUENCES, len(rows), _SEQUENCES)),
                strict=True,
            )
            for part, own in few:
                yield sequence(part, name, seed=seed, rows=own, crop=side)

    names = tuple(name for name in robustness.CORRUPTIONS if name != "frost" or frost is not None)
    return Pictures(labeled, corrupted, perturbed, names)


def _numbered(batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    first = 0
    for images in batches:
        yield images, np.arange(first, first + len(images))
        first += len(images)
