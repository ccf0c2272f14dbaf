"""The 10 + 4 perturbations of ImageNet-P for any images: sequences whose frames differ a little.

The definitions are those of Hendrycks and Dietterich (ICLR 2019) at difficulty 1, with the constants of the
published set whose images are nearest in size. The published sequences of ImageNet-P were saved with a lossy
video codec; sequences generated here are not. A result on them follows the ImageNet-P protocol, regenerated
without codec.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import InputError
from noisystudent.robustness.corruptions import nearest_side
from noisystudent.robustness.corruptions.draws import Draws, draws_of
from noisystudent.robustness.measures import EXTRA_PERTURBATIONS, PERTURBATIONS
from noisystudent.robustness.perturbations import frames as make
from noisystudent.robustness.perturbations import geometry
from noisystudent.robustness.perturbations.table import TABLE

__all__ = ["EXTRA_PERTURBATIONS", "PERTURBATIONS", "sequence"]

# Light and weather act on the crop that a model is given; geometry acts on the whole image, so that what lies
# around the crop moves into it.
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


def sequence(
    images: Tensor, name: str, *, seed: int, rows: NDArray[np.int64], crop: int | None = None
) -> Tensor:
    """One sequence for each image, a pure function of (image, name, seed, row of the image).

    At 64 pixels the published motion blur was applied before the image was resized to 64. Here it is applied
    to the given image, so it is stronger.

    Args:
        images: (B, 3, H, W) uint8. Not changed.
        name: one of `PERTURBATIONS` or `EXTRA_PERTURBATIONS`.
        seed: seed of the whole test.
        rows: (B,) row of each image in its data set.
        crop: side of the frames, cut from the middle of the image; None: the side of square images.
            ImageNet-P uses images whose shorter side is 256 and a crop of 224, so that less black moves in at
            the edge.

    Returns:
        (B, T, 3, crop, crop) uint8 on the device of `images`. T is 31, except for translate (41, at side 64
        31, at side 32 16) and for motion_blur (21 at side 32).

    Raises:
        InputError: an unknown name, a crop that does not fit, or images of another shape or type.
    """
    _check(images, rows, crop)
    side = images.shape[-1] if crop is None else crop
    frames, *values = _constants(name, side)
    draws_of_frame = partial(_draws, seed, f"perturbation/{name}", rows, images.device)
    if name in _ON_CROP:
        made = _ON_CROP[name](geometry.center(images, side), draws_of_frame, int(frames), *values)
    else:
        made = _ON_WHOLE[name](images, draws_of_frame, int(frames), *values, crop=side)
    return torch.stack(list(made), dim=1)


def _draws(seed: int, stream: str, rows: NDArray[np.int64], device: torch.device, frame: int) -> Draws:
    return draws_of(seed, stream, frame, rows, device)


def _constants(name: str, side: int) -> tuple[float, ...]:
    """(number of frames, constants …) of a perturbation."""
    table = TABLE[nearest_side(side)]
    if name not in table:
        names = ", ".join((*PERTURBATIONS, *EXTRA_PERTURBATIONS))
        raise InputError(f"there is no perturbation {name!r}; choose one of {names}")
    return table[name]


def _check(images: Tensor, rows: NDArray[np.int64], crop: int | None) -> None:
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3:
        raise InputError(
            f"images to perturb are {images.dtype} {shape}; they must be torch.uint8 (B, 3, H, W)"
        )
    if rows.shape != shape[:1]:
        raise InputError(
            f"{shape[0]} images to perturb have row numbers of shape {rows.shape}; give one number for each"
        )
    if crop is None and shape[2] != shape[3]:
        raise InputError(f"images to perturb are {shape[2]} by {shape[3]} pixels; give a square crop")
    if not 8 <= (crop or shape[2]) <= min(shape[2:]):
        raise InputError(
            f"the crop is {crop or shape[2]} for images of {shape[2]} by {shape[3]} pixels;"
            " it must be from 8 to the shorter side"
        )
