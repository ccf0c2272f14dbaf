"""The 15 + 4 corruptions of ImageNet-C for any images, at five severities, on any device.

The definitions are those of Hendrycks and Dietterich (ICLR 2019), with the constants of the published set
whose images are nearest in size. The published ImageNet-C images were saved as JPEG of quality 85 after the
corruption, those of CIFAR-10-C were not: `jpeg=True` does it here. A result on images generated here follows
the ImageNet-C protocol on regenerated images; it is not a result on ImageNet-C.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import InputError, did_you_mean
from noisystudent.robustness.corruptions import blur, digital, kernels, noise, weather
from noisystudent.robustness.corruptions.draws import draws_of
from noisystudent.robustness.corruptions.frost import Frost, find_frost
from noisystudent.robustness.corruptions.table import SIDES, constants, nearest_side
from noisystudent.robustness.measures import CORRUPTIONS, EXTRA_CORRUPTIONS

__all__ = [
    "CORRUPTIONS",
    "EXTRA_CORRUPTIONS",
    "SIDES",
    "Frost",
    "corrupt",
    "find_frost",
    "nearest_side",
]

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 8
"""Smallest side in pixels of an image to corrupt."""

_BLOCK, _LARGE_BLOCK = 2**18, 2**24
"""Pixel values processed at a time, on a CPU (few enough for its cache) and on other devices."""

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "spatter": weather.spatter,
    "saturate": digital.saturate,
}


def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    *,
    seed: int,
    rows: NDArray[np.int64],
    frost: Frost | None = None,
    jpeg: bool = False,
    constants_of: int | None = None,
) -> Tensor:
    """Corrupted copies of a batch.

    The copy of an image is a pure function of (image, name, severity, seed, row of the image).

    Args:
        images: (B, 3, S, S) uint8. Not changed.
        name: one of `CORRUPTIONS` or `EXTRA_CORRUPTIONS`.
        severity: 1 … 5.
        seed: seed of the whole test.
        rows: (B,) row of each image in its data set.
        frost: photographs for the corruption frost, from `find_frost`.
        jpeg: save the copies as JPEG of quality 85, as the published ImageNet-C was.
        constants_of: one of `SIDES`, whose constants are used; None: `nearest_side(S)`.

    Returns:
        (B, 3, S, S) uint8 on the device of `images`.

    Raises:
        InputError: an unknown name, severity or side, frost without photographs, or images of another shape
            or type.
    """
    _check(images, name, severity, rows, frost)
    side = nearest_side(images.shape[-1]) if constants_of is None else constants_of
    values = constants(name, severity, side)
    function = _FUNCTIONS[name]
    if name == "frost":
        function = partial(function, photographs=frost)
    images = images.contiguous()
    limit = _BLOCK if images.device.type == "cpu" else _LARGE_BLOCK
    size = max(1, limit // images[0].numel()) if len(images) else 1
    parts = [images[:0]]  # so that an empty batch gives an empty result of the right shape
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        draws = draws_of(seed, f"corruption/{name}", severity, rows[part], images.device)
        corrupted = kernels.quantize(function(images[part], draws, *values))
        parts.append(digital.resave(corrupted, 85) if jpeg else corrupted)
    return torch.cat(parts)


def _check(images: Tensor, name: str, severity: int, rows: NDArray[np.int64], frost: Frost | None) -> None:
    if name not in _FUNCTIONS:
        hint = did_you_mean(name, _FUNCTIONS) or f"; choose one of {', '.join(_FUNCTIONS)}"
        raise InputError(f"there is no corruption {name!r}{hint}")
    if severity not in SEVERITIES:
        raise InputError(f"the severity of {name} is {severity}; choose one of 1, 2, 3, 4, 5")
    if name == "frost" and frost is None:
        raise InputError(
            "frost needs its photographs: give a folder that holds them, install imagecorruptions-imaug, or"
            " leave frost out and call the mean mCE-14"
        )
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise InputError(
            f"images to corrupt are {images.dtype} {shape}; they must be torch.uint8 (B, 3, S, S)"
        )
    if shape[2] < SMALLEST:
        raise InputError(f"images to corrupt are {shape[2]} pixels wide; they must be at least {SMALLEST}")
    if rows.shape != shape[:1]:
        raise InputError(
            f"{shape[0]} images to corrupt have row numbers of shape {rows.shape}; give one number for each"
        )
