"""What several corruptions share: blurs, zooms, streaks and clouds, batched and equal on every device.

Results do not depend on the batch size: sums whose order a library chooses are taken in double precision,
whose rounding is far below what a grey level can show.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from noisystudent.evaluate.corruptions.draws import Draws


def quantize(pixels: Tensor) -> Tensor:
    """Grey levels 0 … 255 as uint8: cut off, not rounded, as the published sets are."""
    if pixels.dtype == torch.uint8:
        return pixels
    # a whole level that rounding left a hair below itself is that level
    return (pixels + 2.0**-10).clamp_(0, 255).to(torch.uint8)


def smooth(images: Tensor, sigma: float, truncate: float = 4.0) -> Tensor:
    """A Gaussian blur of (B, C, S, S), the last pixel repeated outside: float32 of scikit-image's `gaussian`.

    Args:
        images: any type of number.
        sigma: in pixels.
        truncate: where the kernel ends, in sigma.
    """
    weights = bell(sigma, truncate)
    side, reach = images.shape[-1], len(weights) // 2
    pixels = images.float()
    for axis, pad in ((2, [0, 0, reach, reach]), (3, [reach, reach, 0, 0])):
        padded = functional.pad(pixels, pad, mode="replicate")
        pixels = padded.narrow(axis, reach, side) * float(weights[reach])
        for step in range(1, reach + 1):
            pair = padded.narrow(axis, reach - step, side) + padded.narrow(axis, reach + step, side)
            pixels.add_(pair.mul_(float(weights[reach + step])))
    return pixels


def bell(sigma: float, truncate: float) -> NDArray[np.float64]:
    """Weights of a Gaussian kernel, which sum to 1; a single one where it ends within half a pixel."""
    reach = int(truncate * sigma + 0.5)
    weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma)) if reach else np.ones(1)
    return np.asarray(weights / weights.sum())


def separable(planes: Tensor, matrix: Tensor) -> Tensor:
    """The matrix (T, S) float64 applied to the rows and columns of (…, S, S): (…, T, T) float64."""
    across = matrix.to(planes.device).mT
    return ((planes.double() @ across).mT @ across).mT


@lru_cache(maxsize=64)
def gaussian(side: int, sigma: float, truncate: float = 4.0, border: str = "nearest") -> Tensor:
    """(side, side) float64 for `separable`: scikit-image's `gaussian` along one axis.

    Args:
        side: in pixels.
        sigma: in pixels; 0 is the identity.
        truncate: where the kernel ends, in sigma.
        border: "nearest" repeats the last pixel, "reflect" mirrors about the image's edge.
    """
    weights = bell(sigma, truncate)
    offsets = np.arange(len(weights)) - len(weights) // 2
    sources = np.arange(side)[:, None] + offsets
    if border == "reflect":
        sources = sources % (2 * side)
        sources = np.minimum(sources, 2 * side - 1 - sources)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], sources.clip(0, side - 1)), weights)
    return torch.from_numpy(matrix)


@lru_cache(maxsize=32)
def disk(radius: float, sigma: float) -> Tensor:
    """(K, K) float64, a disk smoothed by OpenCV's GaussianBlur (3 by 3 up to radius 8, 5 by 5 above).

    As published it is not normalised again: where the grid ends at the disk, the mirrored border adds weight.
    """
    reach, half = (8, 1) if radius <= 8 else (int(radius), 2)
    line = np.arange(-reach, reach + 1)
    flat = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float64)
    weights = np.exp(-0.5 * np.square(np.arange(-half, half + 1) / sigma))
    blur = np.zeros((len(line), len(line)))
    mirrored = np.abs(np.arange(len(line))[:, None] + np.arange(-half, half + 1))
    mirrored = np.minimum(mirrored, 2 * (len(line) - 1) - mirrored)
    np.add.at(blur, (np.arange(len(line))[:, None], mirrored), weights / weights.sum())
    kernel = blur @ (flat / flat.sum()) @ blur.T
    used = np.abs(line[kernel.max(axis=0) > 1e-9]).max()
    inner = slice(reach - used, reach + used + 1)
    return torch.from_numpy(kernel[inner, inner].copy())


def convolve(images: Tensor, kernel: Tensor) -> Tensor:
    """Images (B, C, S, S) under a symmetric kernel (K, K), mirrored about the last pixel: float64.

    In double precision and by Fourier transforms: a kernel of 21 by 21 costs what one of 3 by 3 does.
    """
    side, reach = images.shape[-1], kernel.shape[0] // 2
    padded = functional.pad(images.double(), [reach] * 4, mode="reflect")
    room = [-(-padded.shape[-1] // 32) * 32] * 2  # lengths the transform is fast at
    spectrum = torch.fft.rfft2(padded, room) * torch.fft.rfft2(kernel.to(images.device), room).conj()
    found: Tensor = torch.fft.irfft2(spectrum, room)
    return found[..., :side, :side]


def streak(images: Tensor, radius: float, sigma: float, angles: NDArray[np.float64]) -> Tensor:
    """ImageMagick's motion blur: a one-sided Gaussian trail, the last pixel repeated outside, not rounded.

    Args:
        images: (B, C, S, S).
        radius: in pixels; the trail has 2 * ceil(radius) + 1 of them.
        sigma: in pixels.
        angles: (B,) degrees from the right towards the bottom: on which side a pixel finds its trail.

    Returns:
        (B, C, S, S) float32.
    """
    weights, columns, rows = trail(radius, sigma, angles)
    side, reach = images.shape[-1], len(weights)
    wide = side + 2 * reach
    padded = functional.pad(images.float(), [reach] * 4, mode="replicate").flatten(2)
    line = torch.arange(reach, reach + side, device=images.device)
    place = (line[:, None] * wide + line).view(1, 1, -1)
    moves = torch.from_numpy(rows * wide + columns).to(images.device)
    blurred = torch.zeros_like(images, dtype=torch.float32).flatten(2)
    for move, weight in zip(moves.mT[..., None, None], weights.tolist(), strict=True):
        source = (place + move).expand(-1, images.shape[1], -1)
        blurred.add_(padded.gather(2, source).mul_(weight))
    return blurred.view_as(images)


def trail(
    radius: float, sigma: float, angles: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Weights (W,) that sum to 1, and columns and rows (B, W) to look at, of a motion blur.

    On the CPU in ImageMagick's order of operations: at 60 degrees the last bit decides where a pixel goes.
    """
    width = 2 * math.ceil(radius) + 1
    steps = np.arange(width)
    weights = np.exp(-np.square(steps / sigma) / 2)
    across, down = width * np.cos(np.deg2rad(angles)), width * np.sin(np.deg2rad(angles))
    length = np.hypot(across, down)[:, None]
    columns = np.ceil(steps * across[:, None] / length - 0.5).astype(np.int64)
    rows = np.ceil(steps * down[:, None] / length - 0.5).astype(np.int64)
    return weights / weights.sum(), columns, rows


def clipped_zoom(images: Tensor, factor: float) -> Tensor:
    """The middle of (B, C, S, S) float, enlarged to (B, C, S, S): scipy's `zoom` of order 1, cut to size."""
    side = images.shape[-1]
    inner = math.ceil(side / factor)
    first = (side - inner) // 2
    middle = images[..., first : first + inner, first : first + inner]
    size = round(inner * factor)
    large = functional.interpolate(middle, size=(size, size), mode="bilinear", align_corners=True)
    trim = (size - side) // 2
    return large[..., trim : trim + side, trim : trim + side]


def clouds(draws: Draws, side: int, decay: float) -> Tensor:
    """(B, side, side) float32, the corner of a plasma fractal in 0 … 1 (diamond-square algorithm).

    The map has the next power of two as its side, as in every published set.
    """
    size = 1 << (side - 1).bit_length()
    heights = draws.uniform(0, size, size).mul_(2).sub_(1)  # where it is not yet reached: the noise to come
    heights[:, 0, 0] = 0
    amplitude, step = 100.0, size
    while step >= 2:
        half = step // 2
        corners, middles = heights[:, ::step, ::step], heights[:, half::step, half::step]
        pairs = corners + corners.roll(-1, 1)
        _settle(middles, pairs + pairs.roll(-1, 2), amplitude)
        above, left = heights[:, ::step, half::step], heights[:, half::step, ::step]
        _settle(above, middles + middles.roll(1, 1) + corners + corners.roll(-1, 2), amplitude)
        _settle(left, middles + middles.roll(1, 2) + corners + corners.roll(-1, 1), amplitude)
        amplitude, step = amplitude / decay, half
    low, high = heights.amin((1, 2), keepdim=True), heights.amax((1, 2), keepdim=True)
    return ((heights - low) / (high - low))[:, :side, :side]


def _settle(noise: Tensor, neighbors: Tensor, amplitude: float) -> None:
    """Noise in -1 … 1 becomes height, in place: the mean of its neighbors plus amplitude squared times it."""
    noise.mul_(amplitude**2).add_(neighbors / 4)
