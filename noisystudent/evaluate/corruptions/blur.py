"""Blur: defocus, glass, motion, zoom and Gaussian; each takes (B, 3, S, S) uint8, returns float 0 … 255."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from noisystudent.evaluate.corruptions import kernels
from noisystudent.evaluate.corruptions.draws import Draws


def defocus_blur(images: Tensor, _draws: Draws, radius: float, sigma: float) -> Tensor:
    """A lens out of focus: a disk of `radius` pixels, its rim smoothed by `sigma`."""
    return kernels.convolve(images, kernels.disk(radius, sigma))


def gaussian_blur(images: Tensor, _draws: Draws, sigma: float) -> Tensor:
    """A Gaussian of deviation `sigma` pixels."""
    return kernels.smooth(images, sigma)


def glass_blur(images: Tensor, draws: Draws, sigma: float, delta: float, rounds: float) -> Tensor:
    """Frosted glass: a Gaussian blur, `rounds` of pixels taken from at most `delta` away, the blur again."""
    side = images.shape[-1]
    source = torch.arange(side * side, device=images.device).expand(len(images), -1)
    moves = draws.below(0, 2 * int(delta), int(rounds), 2, side, side).sub_(int(delta))
    for across, down in (move.unbind(1) for move in moves.unbind(1)):
        source = source.gather(1, shuffle(across, down, int(delta)))
    blurred = kernels.quantize(kernels.smooth(images, sigma)).flatten(2)
    shuffled = blurred.gather(2, source[:, None].expand(-1, 3, -1)).view_as(images)
    return kernels.smooth(shuffled, sigma)


def shuffle(across: Tensor, down: Tensor, delta: int) -> Tensor:
    """Where each pixel comes from after one round of the published code's pixel shuffle.

    That code walks from the last pixel to the first and swaps each with a neighbor, but through NumPy views,
    so that the neighbor keeps its value: pixel[h, w] = pixel[h + down, w + across]. A neighbor that the walk
    has passed holds what it was given itself, so a pixel's source is the end of a chain of such neighbors.

    Args:
        across, down: (B, S, S) int64 in -delta … delta - 1; used in delta + 1 … S - delta only.
        delta: in pixels.

    Returns:
        (B, S * S) int64 indices into the flattened image.
    """
    side, count = across.shape[-1], across.shape[-1] ** 2
    line = torch.arange(side, device=across.device)
    inner = (line > delta) & (line <= side - delta)
    walked = (inner[:, None] & inner).flatten()
    place = torch.arange(count, device=across.device)
    source = torch.where(walked, place + (down * side + across).flatten(1), place)
    passed = walked[source] & (source > place)
    # nodes below `count` are pixels after the walk; above, the same ones before it, where a chain ends
    ends = (place + count).expand(len(source), -1)
    chain = torch.cat([torch.where(passed, source, source + count), ends], dim=1)
    while bool((chain[:, :count] < count).any()):
        chain = chain.gather(1, chain)  # each look doubles the length that is followed
    return chain[:, :count] - count


def motion_blur(images: Tensor, draws: Draws, radius: float, sigma: float) -> Tensor:
    """A moving camera: a trail of `radius` and `sigma` pixels at most 45 degrees from the horizontal."""
    angles = draws.uniform(0).cpu().numpy().astype(np.float64) * 90 - 45
    return kernels.streak(images, radius, sigma, angles).round_()  # the published code rounds here, in a PNG


def zoom_blur(images: Tensor, _draws: Draws, limit: float, step: float) -> Tensor:
    """A moving lens: the mean of the image and its enlargements by 1, 1 + step, … below `limit`."""
    pixels = images.float()
    factors = np.arange(1, limit, step).tolist()
    total = pixels.clone()
    for factor in factors:
        total.add_(kernels.clipped_zoom(pixels, factor))
    return total.div_(len(factors) + 1)
