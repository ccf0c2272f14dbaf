"""The 15 + 4 corruptions of ImageNet-C for any images, at five severities, on any device.

The definitions are those of Hendrycks and Dietterich (ICLR 2019), with the constants of the published set
nearest in size. Published ImageNet-C files were saved as JPEG of quality 85 afterwards, CIFAR-10-C was not:
`jpeg=True` does it here. A number measured on images from here is of the ImageNet-C protocol, regenerated;
it is not a number on ImageNet-C.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import InputError
from noisystudent.evaluate.corruptions import blur, digital, kernels, noise, weather
from noisystudent.evaluate.corruptions.draws import draws_of
from noisystudent.evaluate.corruptions.frost import Frost, find_frost
from noisystudent.evaluate.corruptions.table import COLUMNS, CORRUPTIONS, VALIDATION, column, constants

__all__ = ["COLUMNS", "CORRUPTIONS", "VALIDATION", "Frost", "column", "corrupt", "find_frost"]

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 8
"""Pixels of side below which no corruption is defined."""

_BLOCK, _LARGE_BLOCK = 2**18, 2**24
"""Pixel values worked on at a time, on a CPU (they stay in its cache) and elsewhere."""

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
    """Corrupted copies of a batch; an image's are a pure function of (image, name, severity, seed, its row).

    Args:
        images: (B, 3, S, S) uint8. Not changed.
        name: one of `CORRUPTIONS` or `VALIDATION`.
        severity: 1 … 5.
        seed: of the whole test.
        rows: (B,) numbers of the images in their dataset.
        frost: the photographs for the corruption frost, from `find_frost`.
        jpeg: save as JPEG of quality 85 afterwards, as the published ImageNet-C was.
        constants_of: the side in `COLUMNS` whose constants to use; else `column(S)`.

    Returns:
        (B, 3, S, S) uint8 on the device of `images`.

    Raises:
        InputError: an unknown name, severity or column, frost without photographs, or images that are none.
    """
    _check(images, name, severity, rows, frost)
    values = constants(name, severity, column(images.shape[-1]) if constants_of is None else constants_of)
    function = _FUNCTIONS[name]
    if name == "frost":
        function = partial(function, pictures=frost)
    images = images.contiguous()
    limit = _BLOCK if images.device.type == "cpu" else _LARGE_BLOCK
    size = max(1, limit // images[0].numel()) if len(images) else 1
    parts = [images[:0]]
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        chance = draws_of(seed, f"corruption/{name}", severity, rows[part], images.device)
        corrupted = kernels.quantize(function(images[part], chance, *values))
        parts.append(digital.resave(corrupted, 85) if jpeg else corrupted)
    return torch.cat(parts)


def _check(images: Tensor, name: str, severity: int, rows: NDArray[np.int64], frost: Frost | None) -> None:
    if name not in _FUNCTIONS:
        from difflib import get_close_matches

        near = get_close_matches(name, _FUNCTIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose of {', '.join(_FUNCTIONS)}"
        raise InputError(f"there is no corruption {name!r}; {hint}")
    if severity not in SEVERITIES:
        raise InputError(f"the severity of {name} is {severity}; it is one of 1, 2, 3, 4, 5")
    if name == "frost" and frost is None:
        raise InputError(
            "frost needs its photographs: name a folder that holds them, install imagecorruptions-imaug, or"
            " leave frost out and call the mean mCE-14"
        )
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise InputError(f"images to corrupt are {images.dtype} {shape}; torch.uint8 (B, 3, S, S) is needed")
    if shape[2] < SMALLEST:
        raise InputError(f"images to corrupt are {shape[2]} pixels wide; at least {SMALLEST} are needed")
    if rows.shape != shape[:1]:
        raise InputError(
            f"{shape[0]} images to corrupt have row numbers of shape {rows.shape}; one each is needed"
        )
