"""Test images of the robustness suite: clean, corrupted and perturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.robustness import measures
from noisystudent.robustness.corruptions import Frost, corrupt
from noisystudent.robustness.perturbations import sequence

_SEQUENCES = 8  # generated at a time: each has up to 41 frames, all in memory

LabeledBatch = tuple[Tensor, NDArray[np.int64]]
"""Images (B, 3, S, S) uint8 on the models' device and their labels (B,)."""


@dataclass(frozen=True, slots=True)
class SuiteImages:
    """Images that models are tested on; each call of a reader starts from the first image again.

    Attributes:
        clean: returns the clean images in order.
        corrupted: (corruption, severity) -> the same images, corrupted.
        perturbed: perturbation -> sequences (B, T, 3, S, S) uint8.
        corruptions: names of the available corruptions.
    """

    clean: Callable[[], Iterable[LabeledBatch]]
    corrupted: Callable[[str, int], Iterable[LabeledBatch]]
    perturbed: Callable[[str], Iterable[Tensor]]
    corruptions: tuple[str, ...] = measures.CORRUPTIONS


def remembered(
    read: Callable[[], Iterable[Tensor]], nbytes: int, limit: int = 2**31
) -> Callable[[], Iterable[Tensor]]:
    """A reader of the same batches that keeps them in memory after the first call.

    Args:
        read: returns the batches from the beginning at each call.
        nbytes: size of all batches together.
        limit: largest size in bytes that is kept in memory; above it `read` itself is returned.
    """
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
) -> SuiteImages:
    """Corrupted and perturbed copies, generated while they are read, on the device of the images.

    Args:
        clean: returns batches (B, 3, S, S) uint8 of clean views, from the beginning at each call.
        wholes: returns the same images uncropped (B, 3, H, W). A perturbation moves the whole image and then
            crops the middle to S, so that the surroundings of the crop move into it. H and W may equal S,
            and may differ from batch to batch.
        labels: (N,) in the order of the batches.
        seed: seed of all random numbers.
        frost: photographs for the corruption frost; None leaves frost out.
        jpeg: save corrupted images as JPEG of quality 85, as the published ImageNet-C was.
        rows: (N,) row of each image in its data set. The random numbers of an image depend on its row, so
            they do not depend on the other images. None: 0 … N - 1.
    """
    numbers = np.arange(len(labels)) if rows is None else rows

    def labeled() -> Iterator[LabeledBatch]:
        for images, part in _placed(clean()):
            yield images, labels[part]

    def corrupted(name: str, severity: int) -> Iterator[LabeledBatch]:
        for images, part in _placed(clean()):
            copies = corrupt(images, name, severity, seed=seed, rows=numbers[part], frost=frost, jpeg=jpeg)
            yield copies, labels[part]

    def perturbed(name: str) -> Iterator[Tensor]:
        side = next(iter(clean())).shape[-1]
        for images, part in _placed(wholes()):
            batch_rows = numbers[part]
            for start in range(0, len(images), _SEQUENCES):
                few = slice(start, start + _SEQUENCES)
                yield sequence(images[few], name, seed=seed, rows=batch_rows[few], crop=side)

    names = tuple(name for name in measures.CORRUPTIONS if name != "frost" or frost is not None)
    return SuiteImages(labeled, corrupted, perturbed, names)


def _placed(batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, slice]]:
    """Each batch with the slice of the images that it holds."""
    first = 0
    for images in batches:
        yield images, slice(first, first + len(images))
        first += len(images)
