"""The 10 + 4 sequences of ImageNet-P for any images, in which a picture changes little from frame to frame.

The definitions are those of Hendrycks and Dietterich (ICLR 2019) at difficulty 1, with the constants of the
published set nearest in size. The published sequences of ImageNet-P went through a lossy video codec, these
do not: a number measured on them is of the ImageNet-P protocol, regenerated without codec.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import InputError
from noisystudent.evaluate.corruptions import column
from noisystudent.evaluate.corruptions.draws import Draws, draws_of
from noisystudent.evaluate.perturbations import frames as make
from noisystudent.evaluate.perturbations import geometry
from noisystudent.evaluate.perturbations.table import PERTURBATIONS, TABLE, VALIDATION

__all__ = ["PERTURBATIONS", "VALIDATION", "frame_count", "sequence"]

_ON_CROP: dict[str, Callable[..., make.Frames]] = {
    "gaussian_noise": make.gaussian_noise,
    "shot_noise": make.shot_noise,
    "motion_blur": make.motion_blur,
    "snow": make.snow,
    "brightness": make.brightness,
    "speckle_noise": make.speckle_noise,
    "gaussian_blur": make.gaussian_blur,
    "spatter": make.spatter,
}
_ON_WHOLE: dict[str, Callable[..., make.Frames]] = {
    "zoom_blur": make.zoom_blur,
    "translate": make.translate,
    "rotate": make.rotate,
    "tilt": make.tilt,
    "scale": make.scale,
    "shear": make.shear,
}


def frame_count(name: str, side: int) -> int:
    """How many frames a sequence of images of `side` pixels has: 31, save for two perturbations.

    Raises:
        InputError: an unknown name.
    """
    return int(_constants(name, side)[0])


def sequence(
    images: Tensor, name: str, *, seed: int, rows: NDArray[np.int64], crop: int | None = None
) -> Tensor:
    """One sequence an image, a pure function of (image, name, seed, its row).

    At 64 pixels the published motion blur was made before the image was made small; here it is made on what
    is given, and so is stronger.

    Args:
        images: (B, 3, H, W) uint8. Not changed.
        name: one of `PERTURBATIONS` or `VALIDATION`.
        seed: of the whole test.
        rows: (B,) numbers of the images in their dataset.
        crop: side of the frames, from the middle of the image; else that of the image. ImageNet-P is made of
            images whose shorter side is 256, with a crop of 224, so that less black moves in at the edge.

    Returns:
        (B, T, 3, crop, crop) uint8 on the device of `images`, T as in `frame_count(name, crop)`.

    Raises:
        InputError: an unknown name, a crop that does not fit, or images that are none.
    """
    _check(images, rows, crop)
    side = images.shape[-1] if crop is None else crop
    frames, *values = _constants(name, side)
    chance = partial(_draws, seed, f"perturbation/{name}", rows, images.device)
    if name in _ON_CROP:
        made = _ON_CROP[name](geometry.center(images, side), chance, int(frames), *values)
    else:
        made = _ON_WHOLE[name](images, chance, int(frames), *values, crop=side)
    return torch.stack(list(made), dim=1)


def _draws(seed: int, stream: str, rows: NDArray[np.int64], device: torch.device, frame: int) -> Draws:
    return draws_of(seed, stream, frame, rows, device)


def _constants(name: str, side: int) -> tuple[float, ...]:
    found = TABLE[column(side)].get(name)
    if found is None:
        raise InputError(
            f"there is no perturbation {name!r}; choose of {', '.join((*PERTURBATIONS, *VALIDATION))}"
        )
    return found


def _check(images: Tensor, rows: NDArray[np.int64], crop: int | None) -> None:
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3:
        raise InputError(f"images to perturb are {images.dtype} {shape}; torch.uint8 (B, 3, H, W) is needed")
    if rows.shape != shape[:1]:
        raise InputError(
            f"{shape[0]} images to perturb have row numbers of shape {rows.shape}; one each is needed"
        )
    if crop is None and shape[2] != shape[3]:
        raise InputError(f"images to perturb are {shape[2]} by {shape[3]} pixels; name a square crop")
    if not 8 <= (crop or shape[2]) <= min(shape[2:]):
        raise InputError(
            f"a crop of {crop or shape[2]} from {shape[2]} by {shape[3]} pixels; from 8 to the shorter side"
        )
