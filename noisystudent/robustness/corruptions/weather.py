"""Weather corruptions: each takes images (B, 3, S, S) uint8 and returns floats on the scale 0 … 255."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.robustness.corruptions import kernels
from noisystudent.robustness.corruptions.draws import Draws
from noisystudent.robustness.corruptions.frost import Frost


def snow(
    images: Tensor,
    draws: Draws,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    mix: float,
) -> Tensor:
    """Falling snow: flakes from noise, with a motion blur downwards, added to a whitened image."""
    flakes = snowflakes(draws, images.shape[-1], mean, deviation, zoom, threshold)
    angles = draws.uniform(1).cpu().numpy().astype(np.float64) * 90 - 135
    return snowfall(images, flakes, radius, sigma, angles, mix)


def snowflakes(
    draws: Draws, side: int, mean: float, deviation: float, zoom: float, threshold: float
) -> Tensor:
    """(B, 1, side, side) float32 whole grey levels: noise enlarged by `zoom`, set to 0 below `threshold`."""
    noise = draws.normal(0, 1, side, side).mul_(deviation).add_(mean)
    layer = kernels.clipped_zoom(noise, zoom)
    kept: Tensor = torch.where(layer < threshold, 0, layer)
    kept.clamp_(0, 1).mul_(255).floor_()
    return kept


def snowfall(
    images: Tensor, flakes: Tensor, radius: float, sigma: float, angles: NDArray[np.float64], mix: float
) -> Tensor:
    """Snow over images: flakes with a motion blur at `angles` (B,) degrees.

    The layer of flakes is added twice, the second time rotated by 180 degrees. The image below is a mixture
    of itself, with weight `mix`, and of a whitened copy.
    """
    fallen = kernels.streak(flakes, radius, sigma, angles).round()
    white = (grey(images) * 1.5).add_(127.5)
    pixels = images.float()
    whitened = torch.maximum(pixels, white) * (1 - mix) + pixels * mix
    return whitened + fallen + fallen.flip(-1, -2)


def grey(images: Tensor) -> Tensor:
    """(B, 1, S, S) float32 luma, with OpenCV's weights of the channels."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def frost(
    images: Tensor, draws: Draws, share: float, ice: float, scale: float, *, photographs: Frost
) -> Tensor:
    """`share` times the image plus `ice` times a random crop of one of five photographs of frost."""
    side = images.shape[-1]
    pixels, widths, heights, starts = photographs.scaled(scale, side, images.device)
    which = draws.below(0, len(widths))
    width = widths[which]
    # As `Draws.below`, with another bound for each image.
    numbers = draws.unsigned(1, 2)
    top = (numbers[:, 0] * (heights[which] - side)) >> 32
    left = (numbers[:, 1] * (width - side)) >> 32
    line = torch.arange(side, device=images.device)
    row = (top[:, None] + line) * width[:, None] + (starts[which] + left)[:, None]  # (B, S) first pixels
    crops = pixels[:, row[:, :, None] + line].transpose(0, 1)  # (B, 3, S, S)
    return images.float().mul_(share).add_(crops.float().mul_(ice))


def fog(images: Tensor, draws: Draws, density: float, decay: float) -> Tensor:
    """Fog: a plasma cloud of up to `density` times white is added.

    The sum is then scaled down, so that no value is above the brightest value of the image.
    """
    pixels = images.float()
    brightest = pixels.amax((1, 2, 3), keepdim=True)
    cloud = kernels.clouds(draws, images.shape[-1], decay)[:, None].mul_(255 * density)
    return (pixels + cloud).mul_(brightest).div_(brightest + 255 * density)


def brightness(images: Tensor, _draws: Draws, amount: float) -> Tensor:
    """HSV value raised by `amount`, where white is 1; hue and saturation are kept."""
    pixels = images.double()
    value = pixels.amax(1, keepdim=True)
    raised = (value + 255 * amount).clamp_(0, 255)
    return torch.where(value > 0, pixels * raised / value, raised)  # black becomes grey


def spatter(
    images: Tensor,
    draws: Draws,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: float,
) -> Tensor:
    """Drops on the lens: water with bright edges if `mud` is 0, otherwise mud."""
    liquid = splashes(draws, images.shape[-1], mean, deviation, sigma, threshold)
    if not mud:
        return wet(images, liquid, strength)
    covered = (liquid > threshold).double()
    shade = kernels.separable(covered, kernels.gaussian(images.shape[-1], strength))[:, None]
    shade = torch.where(shade < 0.8, 0, shade)
    brown = torch.tensor([63.0, 42.0, 20.0], dtype=torch.float64, device=images.device).view(3, 1, 1)
    return images.double().mul_(1 - shade).add_(shade * brown)


def splashes(
    draws: Draws, side: int, mean: float, deviation: float, sigma: float, threshold: float
) -> Tensor:
    """(B, side, side) float64 smoothed noise, set to 0 below `threshold`."""
    noise = draws.normal(0, side, side).mul_(deviation).add_(mean)
    liquid = kernels.separable(noise, kernels.gaussian(side, sigma))
    return torch.where(liquid < threshold, 0, liquid)


def wet(images: Tensor, liquid: Tensor, strength: float) -> Tensor:
    """Images with drops of pale turquoise water of thickness `liquid` (B, S, S) float64, where 1 is white."""
    # Imported here, because it imports OpenCV, which no other corruption needs.
    from noisystudent.robustness.corruptions.water import shine

    levels = (liquid * 255).to(torch.int32).to(torch.uint8).cpu().numpy()  # wraps above 255, as published
    highlights = torch.from_numpy(np.stack([shine(layer) for layer in levels])).to(images.device)[:, None]
    turquoise = torch.tensor([175.0, 238.0, 238.0], device=images.device).view(3, 1, 1)
    return images.float().add_(highlights * strength * turquoise)
