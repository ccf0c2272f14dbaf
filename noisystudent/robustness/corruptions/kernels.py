"""Functions shared by several corruptions: blurs, zooms, motion trails and clouds.

All functions work on batches, and their results are equal on every device and for every batch size. Where a
library chooses the order of a sum, the sum is computed in double precision, whose rounding error is far below
one grey level.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from noisystudent.robustness.corruptions.draws import Draws


def quantize(pixels: Tensor) -> Tensor:
    """Pixels as uint8 grey levels 0 … 255: truncated, not rounded, as in the published code."""
    if pixels.dtype == torch.uint8:
        return pixels
    # The small addition keeps whole levels that floating-point rounding left slightly too low.
    return (pixels + 2.0**-10).clamp_(0, 255).to(torch.uint8)


def smooth(images: Tensor, sigma: float, truncate: float = 4.0) -> Tensor:
    """Gaussian blur as scikit-image's `gaussian` computes it, with the last pixel repeated outside.

    Args:
        images: (B, C, S, S) of any type.
        sigma: standard deviation in pixels.
        truncate: half width of the kernel, in units of sigma.

    Returns:
        (B, C, S, S) float32.
    """
    weights = gaussian_weights(sigma, truncate)
    side, reach = images.shape[-1], len(weights) // 2
    pixels = images.float()
    for axis, pad in ((2, [0, 0, reach, reach]), (3, [reach, reach, 0, 0])):
        padded = functional.pad(pixels, pad, mode="replicate")
        pixels = padded.narrow(axis, reach, side) * float(weights[reach])
        for step in range(1, reach + 1):
            # The kernel is symmetric: both neighbours at this distance have the same weight.
            pair = padded.narrow(axis, reach - step, side) + padded.narrow(axis, reach + step, side)
            pixels.add_(pair.mul_(float(weights[reach + step])))
    return pixels


def gaussian_weights(sigma: float, truncate: float) -> NDArray[np.float64]:
    """Weights of a Gaussian kernel, which sum to 1; a single one if the half width is below half a pixel."""
    reach = int(truncate * sigma + 0.5)
    weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma)) if reach else np.ones(1)
    return np.asarray(weights / weights.sum())


def separable(planes: Tensor, matrix: Tensor) -> Tensor:
    """(…, S, S) -> (…, T, T) float64: the matrix (T, S) float64 applied to the rows and then the columns."""
    across = matrix.to(planes.device).mT
    return ((planes.double() @ across).mT @ across).mT


@lru_cache(maxsize=64)
def gaussian(side: int, sigma: float, truncate: float = 4.0, border: str = "nearest") -> Tensor:
    """Matrix (side, side) float64 for `separable`: scikit-image's `gaussian` along one axis.

    Args:
        side: side of the image in pixels.
        sigma: standard deviation in pixels; 0: the identity matrix.
        truncate: half width of the kernel, in units of sigma.
        border: "nearest" repeats the last pixel, "reflect" mirrors about the image's edge.
    """
    weights = gaussian_weights(sigma, truncate)
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
    """Kernel (K, K) float64: a disk smoothed by OpenCV's GaussianBlur (3 by 3 up to radius 8, 5 by 5 above).

    As in the published code, the kernel is not normalised after smoothing. If the disk reaches the edge of
    its grid, the mirrored border adds weight, so the sum is above 1.
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
    # Zeros at the border are cut off: the cost and the padding of `convolve` depend on the size.
    used = np.abs(line[kernel.max(axis=0) > 1e-9]).max()
    inner = slice(reach - used, reach + used + 1)
    return torch.from_numpy(kernel[inner, inner].copy())


def convolve(images: Tensor, kernel: Tensor) -> Tensor:
    """(B, C, S, S) float64: images convolved with a symmetric kernel (K, K), mirrored about the last pixel.

    It uses Fourier transforms in double precision: a kernel of 21 by 21 takes as long as one of 3 by 3.
    """
    side, reach = images.shape[-1], kernel.shape[0] // 2
    padded = functional.pad(images.double(), [reach] * 4, mode="reflect")
    lengths = [-(-padded.shape[-1] // 32) * 32] * 2  # multiples of 32, for which the transform is fast
    spectrum = torch.fft.rfft2(padded, lengths) * torch.fft.rfft2(kernel.to(images.device), lengths).conj()
    convolved: Tensor = torch.fft.irfft2(spectrum, lengths)
    return convolved[..., :side, :side]


def streak(images: Tensor, radius: float, sigma: float, angles: NDArray[np.float64]) -> Tensor:
    """ImageMagick's motion blur: a one-sided Gaussian trail, with the last pixel repeated outside.

    Args:
        images: (B, C, S, S).
        radius: in pixels; the trail has 2 * ceil(radius) + 1 pixels.
        sigma: standard deviation of the weights in pixels.
        angles: (B,) direction in which the trail's pixels are read, in degrees from the right towards the
            bottom.

    Returns:
        (B, C, S, S) float32, not rounded.
    """
    weights, columns, rows = trail(radius, sigma, angles)
    side, reach = images.shape[-1], len(weights)
    padded_side = side + 2 * reach
    padded = functional.pad(images.float(), [reach] * 4, mode="replicate").flatten(2)
    line = torch.arange(reach, reach + side, device=images.device)
    place = (line[:, None] * padded_side + line).view(1, 1, -1)  # index of each pixel in the padded image
    moves = torch.from_numpy(rows * padded_side + columns).to(images.device)
    blurred = torch.zeros_like(images, dtype=torch.float32).flatten(2)
    for move, weight in zip(moves.mT[..., None, None], weights.tolist(), strict=True):
        source = (place + move).expand(-1, images.shape[1], -1)
        blurred.add_(padded.gather(2, source).mul_(weight))
    return blurred.view_as(images)


def trail(
    radius: float, sigma: float, angles: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Weights (W,) that sum to 1, and column and row offsets (B, W), of a motion blur.

    They are computed on the CPU in ImageMagick's order of operations, because the last bit can decide how an
    offset is rounded, for example at 60 degrees.
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
    """(B, C, S, S) float: the middle of the images, enlarged by `factor` as by scipy's `zoom` of order 1."""
    side = images.shape[-1]
    inner = math.ceil(side / factor)
    first = (side - inner) // 2
    middle = images[..., first : first + inner, first : first + inner]
    size = round(inner * factor)
    large = functional.interpolate(middle, size=(size, size), mode="bilinear", align_corners=True)
    trim = (size - side) // 2
    return large[..., trim : trim + side, trim : trim + side]


def clouds(draws: Draws, side: int, decay: float) -> Tensor:
    """(B, side, side) float32 in 0 … 1, the corner of a plasma fractal (diamond-square algorithm).

    The side of the whole map is the next power of two, as in all published sets.
    """
    size = 1 << (side - 1).bit_length()
    # Places that the algorithm has not reached yet hold the noise in -1 … 1 that it will use there.
    heights = draws.uniform(0, size, size).mul_(2).sub_(1)
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
    """Replace noise in -1 … 1 by heights, in place: the mean of four neighbours plus amplitude² times noise.

    Args:
        noise: (B, H, W), changed.
        neighbors: (B, H, W) sum of the four neighbours.
        amplitude: squared as in the published code.
    """
    noise.mul_(amplitude**2).add_(neighbors / 4)
