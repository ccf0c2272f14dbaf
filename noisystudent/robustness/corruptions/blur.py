"""Blur corruptions: each function takes images (B, 3, S, S) uint8 and returns floats in 0 … 255."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from noisystudent.robustness.corruptions import kernels
from noisystudent.robustness.corruptions.draws import Draws


def defocus_blur(images: Tensor, _draws: Draws, radius: float, sigma: float) -> Tensor:
    """Defocus blur: convolution with a disk of `radius` pixels whose edge is smoothed by `sigma`."""
    return kernels.convolve(images, kernels.disk(radius, sigma))


def gaussian_blur(images: Tensor, _draws: Draws, sigma: float) -> Tensor:
    """Gaussian blur with a standard deviation of `sigma` pixels."""
    return kernels.smooth(images, sigma)


def glass_blur(images: Tensor, draws: Draws, sigma: float, delta: float, rounds: float) -> Tensor:
    """Frosted glass: a Gaussian blur, `rounds` of a pixel shuffle, and the Gaussian blur again.

    The shuffle takes each pixel from a place at most `delta` pixels away.
    """
    side = images.shape[-1]
    # The rounds are combined into one index map, so that the pixels are moved only once.
    source = torch.arange(side * side, device=images.device).expand(len(images), -1)
    moves = draws.below(0, 2 * int(delta), int(rounds), 2, side, side).sub_(int(delta))
    for across, down in (move.unbind(1) for move in moves.unbind(1)):
        source = source.gather(1, shuffle(across, down, int(delta)))
    blurred = kernels.quantize(kernels.smooth(images, sigma)).flatten(2)
    shuffled = blurred.gather(2, source[:, None].expand(-1, 3, -1)).view_as(images)
    return kernels.smooth(shuffled, sigma)


def shuffle(across: Tensor, down: Tensor, delta: int) -> Tensor:
    """Source of each pixel after one round of the published code's pixel shuffle.

    That code goes from the last pixel to the first and swaps each with a neighbour. Because it swaps NumPy
    views, the neighbour keeps its value: pixel[h, w] = pixel[h + down, w + across]. If the neighbour was
    visited earlier, it already holds the value of its own neighbour. So the source of a pixel is the end of a
    chain of neighbours.

    Args:
        across, down: (B, S, S) int64 in -delta … delta - 1; used for rows and columns delta + 1 … S - delta.
        delta: largest distance in pixels.

    Returns:
        (B, S * S) int64 indices into the flattened image.
    """
    side, count = across.shape[-1], across.shape[-1] ** 2
    line = torch.arange(side, device=across.device)
    inner = (line > delta) & (line <= side - delta)
    visited = (inner[:, None] & inner).flatten()
    place = torch.arange(count, device=across.device)
    source = torch.where(visited, place + (down * side + across).flatten(1), place)
    # The loop runs backwards: a source at a higher index was visited before this pixel.
    changed = visited[source] & (source > place)
    # Nodes below `count` are the pixels after the round. Nodes from `count` on are the same pixels before the
    # round; they point to themselves, so a chain ends there.
    ends = (place + count).expand(len(source), -1)
    chain = torch.cat([torch.where(changed, source, source + count), ends], dim=1)
    while bool((chain[:, :count] < count).any()):
        chain = chain.gather(1, chain)  # each step doubles the length of the chains that are followed
    return chain[:, :count] - count


def motion_blur(images: Tensor, draws: Draws, radius: float, sigma: float) -> Tensor:
    """Camera motion: a blur trail of `radius` and `sigma` pixels, at most 45 degrees from the horizontal."""
    angles = draws.uniform(0).cpu().numpy().astype(np.float64) * 90 - 45
    # The published code writes the result to a PNG file, which rounds.
    return kernels.streak(images, radius, sigma, angles).round_()


def zoom_blur(images: Tensor, _draws: Draws, limit: float, step: float) -> Tensor:
    """Zoom during exposure: the mean of the image and its enlargements by 1, 1 + step, … below `limit`."""
    pixels = images.float()
    factors = np.arange(1, limit, step).tolist()
    # The published code counts the image twice: by itself, and as the enlargement by 1.
    total = pixels.clone()
    for factor in factors:
        total.add_(kernels.clipped_zoom(pixels, factor))
    return total.div_(len(factors) + 1)
