"""Noise corruptions: each function takes images (B, 3, S, S) uint8; the result is not clipped to 0 … 255."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from noisystudent.robustness.corruptions.draws import Draws


def gaussian_noise(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Additive Gaussian noise with a standard deviation of `sigma`, where white is 1."""
    return draws.normal(0, *images.shape[1:]).mul_(255 * sigma).add_(images)


def shot_noise(images: Tensor, draws: Draws, photons: float) -> Tensor:
    """Shot noise: each value becomes a Poisson count, with a mean of `photons` for white."""
    table, width = _poisson_table(photons)
    level = images.long()
    # One sorted table holds the 256 distributions one after another. Searching it for (grey level, random
    # number) gives the count, plus `width` for each lower grey level.
    place = torch.searchsorted(
        table.to(images.device), (level << 32) + draws.unsigned(0, *images.shape[1:]), right=True
    )
    return place.sub_(level.mul_(width)).float().mul_(255 / photons)


@lru_cache(maxsize=16)
def _poisson_table(photons: float) -> tuple[Tensor, int]:
    """Cumulative Poisson probabilities in units of 2**-32 for each grey level, and the entries per level.

    The grey level is added in the upper 32 bits of each entry, so the flattened table is sorted.
    """
    from scipy.special import pdtr

    width = int(photons + 8 * math.sqrt(photons) + 20)  # counts above 8 deviations do not occur in practice
    shares = pdtr(np.arange(width), np.arange(256)[:, None] * (photons / 255))
    scaled = np.rint(shares * 2.0**32).astype(np.int64)
    return torch.from_numpy((scaled + (np.arange(256)[:, None] << 32)).ravel()), width


def impulse_noise(images: Tensor, draws: Draws, amount: float) -> Tensor:
    """Salt-and-pepper noise: sets a share `amount` of the values to 0 or 255, in each channel on its own."""
    numbers = draws.unsigned(0, *images.shape[1:])
    salted = torch.where(numbers < int(amount * 2**32), 255, images)
    return torch.where(numbers < int(amount * 2**31), 0, salted)  # the lower half of them


def speckle_noise(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Multiplicative Gaussian noise with a standard deviation of `sigma` times the value."""
    return draws.normal(0, *images.shape[1:]).mul_(sigma).add_(1).mul_(images)
