"""Noise: Gaussian, shot, impulse and speckle; each takes (B, 3, S, S) uint8, returns 0 … 255, unclipped."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from noisystudent.evaluate.corruptions.draws import Draws


def gaussian_noise(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Adds to each value noise of deviation `sigma`, where white is 1."""
    return draws.normal(0, *images.shape[1:]).mul_(255 * sigma).add_(images)


def shot_noise(images: Tensor, draws: Draws, photons: float) -> Tensor:
    """Counts photons, of which white emits `photons` on average: a Poisson number for each value."""
    table, width = _arrivals(photons)
    level = images.long()
    # all 256 distributions in one sorted table: the place of (grey level, chance) there is the count
    place = torch.searchsorted(
        table.to(images.device), (level << 32) + draws.unsigned(0, *images.shape[1:]), right=True
    )
    return place.sub_(level.mul_(width)).float().mul_(255 / photons)


@lru_cache(maxsize=16)
def _arrivals(photons: float) -> tuple[Tensor, int]:
    """Cumulative Poisson probabilities in units of 2**-32, a row for each grey level; and a row's length."""
    from scipy.special import pdtr

    width = int(photons + 8 * math.sqrt(photons) + 20)
    shares = pdtr(np.arange(width), np.arange(256)[:, None] * (photons / 255))
    scaled = np.rint(shares * 2.0**32).astype(np.int64)
    return torch.from_numpy((scaled + (np.arange(256)[:, None] << 32)).ravel()), width


def impulse_noise(images: Tensor, draws: Draws, amount: float) -> Tensor:
    """Turns a share `amount` of the values, channel by channel, black or white."""
    chance = draws.unsigned(0, *images.shape[1:])
    salted = torch.where(chance < int(amount * 2**32), 255, images)
    return torch.where(chance < int(amount * 2**31), 0, salted)


def speckle_noise(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Adds noise of deviation `sigma` times the value itself."""
    return draws.normal(0, *images.shape[1:]).mul_(sigma).add_(1).mul_(images)
