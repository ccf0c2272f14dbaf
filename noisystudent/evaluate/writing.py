"""Write corrupted images to disk in the layouts of the published sets, which `released` reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from noisystudent import rundir
from noisystudent.errors import InputError
from noisystudent.evaluate.released import SEVERITIES


def write_arrays(folder: Path, name: str, images: Iterable[Tensor], labels: NDArray[np.int64]) -> None:
    """Write `<name>.npy` and `labels.npy` as CIFAR-10-C does, whole or not at all.

    Args:
        folder: made if it does not exist.
        name: of the corruption.
        images: batches (B, 3, S, S) uint8: all images at severity 1, then all at 2, up to 5.
        labels: (N,) of the images, once.

    Raises:
        InputError: not five times as many images as labels.
        RunError: the disk is full or cannot be written.
    """
    written = 0
    with rundir.atomic(folder / f"{name}.npy") as partial:
        target: np.memmap[Any, np.dtype[np.uint8]] | None = None
        for part in images:
            pixels = part.permute(0, 2, 3, 1).cpu().numpy()
            if target is None:
                shape = (SEVERITIES * len(labels), *pixels.shape[1:])
                target = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            target[written : written + len(pixels)] = pixels[: len(target) - written]
            written += len(pixels)
        if target is None or written != len(target):
            raise InputError(f"{name}: {written} images for {len(labels)} labels at {SEVERITIES} severities")
        target.flush()
    with rundir.atomic(folder / "labels.npy") as partial, partial.open("wb") as file:
        np.save(file, np.tile(labels, SEVERITIES))


def write_folder(
    root: Path, name: str, severity: int, images: Iterable[Tensor], files: Sequence[str]
) -> None:
    """Write `<name>/<severity>/<class>/<image>.JPEG` of quality 85 as ImageNet-C does, whole or not at all.

    Args:
        root: of the set.
        name: of the corruption.
        severity: 1 … 5.
        images: batches (B, 3, S, S) uint8, not yet saved as JPEG.
        files: `<class>/<image>` of each image, with any ending.

    Raises:
        InputError: a name that leads elsewhere, or not one for each image.
        RunError: the disk is full or cannot be written.
    """
    places = [PurePosixPath(file) for file in files]
    for place in places:
        if place.is_absolute() or ".." in place.parts or len(place.parts) != 2:
            raise InputError(f"{str(place)!r} cannot be written below {root}; it should be <class>/<image>")
    if len({place.with_suffix("") for place in places}) < len(places):
        raise InputError(f"{name}, severity {severity}: two images have one name but for its ending")
    count = 0
    with rundir.atomic(root / name / str(severity)) as partial:
        for part in images:
            for pixels, place in zip(part.permute(0, 2, 3, 1).cpu().numpy(), places[count:], strict=False):
                target = partial / place.with_suffix(".JPEG")
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(target, quality=85, optimize=True)
            count += len(part)
        if count != len(places):
            raise InputError(f"{name}, severity {severity}: {count} images for {len(places)} names")
