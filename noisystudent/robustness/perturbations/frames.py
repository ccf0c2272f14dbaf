"""The perturbations of ImageNet-P: one function for each, which yields the frames of its sequences in order.

Perturbations of light and weather act on the crop that a model is given. Geometric ones act on the whole
image before the crop. A frame is (B, 3, crop, crop) uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from noisystudent.robustness.corruptions import kernels, noise, weather
from noisystudent.robustness.corruptions.draws import Draws
from noisystudent.robustness.perturbations import geometry

FrameDraws = Callable[[int], Draws]
"""Number of a frame -> random numbers of that frame in each sequence."""

Frames = Iterator[Tensor]


def gaussian_noise(images: Tensor, draws_of: FrameDraws, frames: int, sigma: float) -> Frames:
    """The clean image, then in each frame new Gaussian noise with a standard deviation of `sigma`."""
    return _noisy(images, draws_of, frames, noise.gaussian_noise, sigma)


def shot_noise(images: Tensor, draws_of: FrameDraws, frames: int, photons: float) -> Frames:
    """The clean image, then in each frame new shot noise with a mean of `photons` for white."""
    return _noisy(images, draws_of, frames, noise.shot_noise, photons)


def speckle_noise(images: Tensor, draws_of: FrameDraws, frames: int, sigma: float) -> Frames:
    """The clean image, then in each frame new noise with a standard deviation of `sigma` times the value."""
    return _noisy(images, draws_of, frames, noise.speckle_noise, sigma)


def _noisy(
    images: Tensor, draws_of: FrameDraws, frames: int, function: Callable[..., Tensor], constant: float
) -> Frames:
    yield images
    for frame in range(1, frames):
        yield kernels.quantize(function(images, draws_of(frame), constant))


def motion_blur(
    images: Tensor, _draws_of: FrameDraws, frames: int, radius: float, sigma: float, step: float
) -> Frames:
    """Motion blur whose direction changes by `step` degrees in each frame, to 0 degrees in the last."""
    for frame in range(frames):
        angles = np.full(len(images), (frame - (frames - 1)) * step)
        yield kernels.quantize(kernels.streak(images, radius, sigma, angles).round_())


def snow(
    images: Tensor,
    draws_of: FrameDraws,
    frames: int,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    mix: float,
) -> Frames:
    """One layer of flakes, with a motion blur from -150 degrees that rotates by 4 degrees in each frame."""
    flakes = weather.snowflakes(draws_of(0), images.shape[-1], mean, deviation, zoom, threshold)
    for frame in range(frames):
        angles = np.full(len(images), frame * 4.0 - 150)
        yield kernels.quantize(weather.snowfall(images, flakes, radius, sigma, angles, mix))


def brightness(images: Tensor, draws_of: FrameDraws, frames: int, step: float) -> Frames:
    """Brightness that grows by `step` times white in each frame; the middle frame is the image itself."""
    for frame in range(frames):
        yield kernels.quantize(weather.brightness(images, draws_of(0), (frame - frames // 2) * step))


def gaussian_blur(
    images: Tensor, _draws_of: FrameDraws, frames: int, first: float, step: float, truncate: float
) -> Frames:
    """Gaussian blur of `first` pixels that grows by `step` pixels in each frame."""
    for frame in range(frames):
        yield kernels.quantize(kernels.smooth(images, first + step * frame, truncate))


def spatter(
    images: Tensor,
    draws_of: FrameDraws,
    frames: int,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    *drip: float,
) -> Frames:
    """Drops of water that run down the lens: in each frame their columns are convolved with `drip`."""
    side = images.shape[-1]
    liquid = weather.splashes(draws_of(0), side, mean, deviation, sigma, threshold)
    # (side, side) matrix of the convolution.
    matrix = sum(weight * np.eye(side, k=(len(drip) - 1) // 2 - step) for step, weight in enumerate(drip))
    down = torch.from_numpy(np.asarray(matrix)).to(images.device)
    for _ in range(frames):
        yield kernels.quantize(weather.wet(images, liquid, 0.6))
        liquid = down @ liquid


def zoom_blur(images: Tensor, _draws_of: FrameDraws, frames: int, step: float, *, crop: int) -> Frames:
    """Mean of all enlargements so far; the enlargement starts at 1 and grows by `step` in each frame."""
    total = torch.zeros((*images.shape[:2], crop, crop), dtype=torch.int32, device=images.device)
    for frame in range(frames):
        total += geometry.warp_affine(images, geometry.affine(_size(images), scale=1 + step * frame), crop)
        yield (total // (frame + 1)).to(torch.uint8)


def translate(images: Tensor, _draws_of: FrameDraws, frames: int, first: float, *, crop: int) -> Frames:
    """The image moved `first` pixels to the left, then one pixel to the right in each frame."""
    for frame in range(frames):
        yield geometry.shift_right(images, frame - int(first), crop)


def rotate(images: Tensor, _draws_of: FrameDraws, frames: int, step: float, *, crop: int) -> Frames:
    """Rotation, clockwise by `step` degrees in each frame; the middle frame is not rotated."""
    for frame in range(frames):
        rotated = geometry.affine(_size(images), angle=(frame - frames // 2) * step)
        yield geometry.warp_affine(images, rotated, crop)


def tilt(images: Tensor, _draws_of: FrameDraws, frames: int, step: float, *, crop: int) -> Frames:
    """Rotation out of the image plane, by `step` degrees in each frame; the middle frame is not tilted."""
    for frame in range(frames):
        tilted = geometry.tilt(_size(images), (frame - frames // 2) * step)
        yield geometry.warp_tilt(images, tilted, crop)


def scale(
    images: Tensor, _draws_of: FrameDraws, frames: int, first: float, step: float, *, crop: int
) -> Frames:
    """The image at `first` times its size, which grows by `step` in each frame."""
    for frame in range(frames):
        yield geometry.warp_affine(images, geometry.affine(_size(images), scale=first + step * frame), crop)


def shear(images: Tensor, _draws_of: FrameDraws, frames: int, step: float, *, crop: int) -> Frames:
    """Shear that grows by `step` degrees in each frame; the middle frame is not sheared."""
    for frame in range(frames):
        sheared = geometry.affine(_size(images), shear=(frame - frames // 2) * step)
        yield geometry.warp_affine(images, sheared, crop)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]
