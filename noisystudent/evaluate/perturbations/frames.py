"""The sequences of ImageNet-P, one function a perturbation, each yielding its frames in order.

Those of light and weather act on the crop that a model sees; those of geometry on the whole image, before
the crop. A frame is (B, 3, crop, crop) uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from noisystudent.evaluate.corruptions import kernels, noise, weather
from noisystudent.evaluate.corruptions.draws import Draws
from noisystudent.evaluate.perturbations import geometry

Chance = Callable[[int], Draws]
"""The draws of one frame of each sequence."""

Frames = Iterator[Tensor]


def gaussian_noise(images: Tensor, chance: Chance, frames: int, sigma: float) -> Frames:
    """The clean image, then fresh noise of deviation `sigma` on it."""
    return _noisy(images, chance, frames, noise.gaussian_noise, sigma)


def shot_noise(images: Tensor, chance: Chance, frames: int, photons: float) -> Frames:
    """The clean image, then fresh shot noise of `photons` for white."""
    return _noisy(images, chance, frames, noise.shot_noise, photons)


def speckle_noise(images: Tensor, chance: Chance, frames: int, sigma: float) -> Frames:
    """The clean image, then fresh noise of `sigma` times the value."""
    return _noisy(images, chance, frames, noise.speckle_noise, sigma)


def _noisy(
    images: Tensor, chance: Chance, frames: int, function: Callable[..., Tensor], constant: float
) -> Frames:
    yield images
    for frame in range(1, frames):
        yield kernels.quantize(function(images, chance(frame), constant))


def motion_blur(
    images: Tensor, _chance: Chance, frames: int, radius: float, sigma: float, step: float
) -> Frames:
    """A trail that turns by `step` degrees a frame, and ends at 0 degrees."""
    for frame in range(frames):
        angles = np.full(len(images), (frame - (frames - 1)) * step)
        yield kernels.quantize(kernels.streak(images, radius, sigma, angles).round_())


def snow(
    images: Tensor,
    chance: Chance,
    frames: int,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    mix: float,
) -> Frames:
    """One layer of flakes, falling from -150 degrees on, by 4 degrees a frame."""
    flakes = weather.snowflakes(chance(0), images.shape[-1], mean, deviation, zoom, threshold)
    for frame in range(frames):
        angles = np.full(len(images), frame * 4.0 - 150)
        yield kernels.quantize(weather.snowfall(images, flakes, radius, sigma, angles, mix))


def brightness(images: Tensor, chance: Chance, frames: int, step: float) -> Frames:
    """From dark to bright by `step` of white a frame; the middle frame is the image."""
    for frame in range(frames):
        yield kernels.quantize(weather.brightness(images, chance(0), (frame - frames // 2) * step))


def gaussian_blur(
    images: Tensor, _chance: Chance, frames: int, first: float, step: float, truncate: float
) -> Frames:
    """A blur of `first` pixels that grows by `step`."""
    for frame in range(frames):
        yield kernels.quantize(kernels.smooth(images, first + step * frame, truncate))


def spatter(
    images: Tensor,
    chance: Chance,
    frames: int,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    *drip: float,
) -> Frames:
    """Drops of water that run down the lens: each frame their columns are convolved with `drip`."""
    side = images.shape[-1]
    liquid = weather.splashes(chance(0), side, mean, deviation, sigma, threshold)
    run = sum(weight * np.eye(side, k=(len(drip) - 1) // 2 - step) for step, weight in enumerate(drip))
    down = torch.from_numpy(np.asarray(run)).to(images.device)
    for _ in range(frames):
        yield kernels.quantize(weather.wet(images, liquid, 0.6))
        liquid = down @ liquid


def zoom_blur(images: Tensor, _chance: Chance, frames: int, step: float, *, crop: int) -> Frames:
    """The mean of the image and its enlargements so far, which grow by `step` a frame."""
    total = torch.zeros((*images.shape[:2], crop, crop), dtype=torch.int32, device=images.device)
    for frame in range(frames):
        total += geometry.warp_affine(images, geometry.affine(_size(images), scale=1 + step * frame), crop)
        yield (total // (frame + 1)).to(torch.uint8)


def translate(images: Tensor, _chance: Chance, frames: int, first: float, *, crop: int) -> Frames:
    """From `first` pixels to the left, one pixel to the right a frame."""
    for frame in range(frames):
        yield geometry.shift_right(images, frame - int(first), crop)


def rotate(images: Tensor, _chance: Chance, frames: int, step: float, *, crop: int) -> Frames:
    """Clockwise by `step` degrees a frame; the middle frame is upright."""
    for frame in range(frames):
        turned = geometry.affine(_size(images), angle=(frame - frames // 2) * step)
        yield geometry.warp_affine(images, turned, crop)


def tilt(images: Tensor, _chance: Chance, frames: int, step: float, *, crop: int) -> Frames:
    """Turned in depth by `step` degrees a frame; the middle frame faces the camera."""
    for frame in range(frames):
        turned = geometry.tilt(_size(images), (frame - frames // 2) * step)
        yield geometry.warp_tilt(images, turned, crop)


def scale(images: Tensor, _chance: Chance, frames: int, first: float, step: float, *, crop: int) -> Frames:
    """From `first` times its size, larger by `step` a frame."""
    for frame in range(frames):
        yield geometry.warp_affine(images, geometry.affine(_size(images), scale=first + step * frame), crop)


def shear(images: Tensor, _chance: Chance, frames: int, step: float, *, crop: int) -> Frames:
    """Sheared by `step` degrees more a frame; the middle frame is upright."""
    for frame in range(frames):
        slanted = geometry.affine(_size(images), shear=(frame - frames // 2) * step)
        yield geometry.warp_affine(images, slanted, crop)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]
