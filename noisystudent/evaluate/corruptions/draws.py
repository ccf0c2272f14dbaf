"""Random numbers for a batch of images: each image's are its own, and the same on every device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.runtime import torch_seed

_GAMMA, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
"""The constants of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) as signed numbers."""


@dataclass(frozen=True, slots=True)
class Draws:
    """What chance decides for each image of a batch.

    A number is a hash of its image's key, a `field` (a small number that names what it is for) and its place:
    no state, no order, integers only, so batch size and device do not matter.

    Attributes:
        keys: (B,) int64, one an image.
    """

    keys: Tensor

    def words(self, field: int, *shape: int) -> Tensor:
        """(B, *shape) int32, every value equally likely."""
        count = math.prod(shape)
        place = torch.arange(1, -(-count // 2) + 1, device=self.keys.device)
        state = _mix(self.keys[:, None] + place.add_(field << 40).mul_(_GAMMA))
        return state.view(torch.int32)[:, :count].reshape(len(self.keys), *shape)

    def uniform(self, field: int, *shape: int) -> Tensor:
        """(B, *shape) float32 in [0, 1), in steps of 2**-24."""
        return (self.words(field, *shape) >> 8).float().mul_(2.0**-24).add_(0.5)

    def below(self, field: int, bound: int, *shape: int) -> Tensor:
        """(B, *shape) int64 in 0 … bound - 1."""
        return self.unsigned(field, *shape).mul_(bound).bitwise_right_shift_(32)

    def unsigned(self, field: int, *shape: int) -> Tensor:
        """(B, *shape) int64 in 0 … 2**32 - 1."""
        return self.words(field, *shape).long().add_(2**31)

    def normal(self, field: int, *shape: int) -> Tensor:
        """(B, *shape) float32 of mean 0 and variance 1: 65,536 equally likely quantiles, within ±4.3."""
        count = math.prod(shape)
        words = self.words(field, -(-count // 2)).view(torch.int16)[:, :count]
        place = words.to(torch.int32).add_(2**15)
        table = _quantiles().to(self.keys.device)
        return table.index_select(0, place.flatten()).view(len(self.keys), *shape)


def draws_of(seed: int, stream: str, counter: int, rows: NDArray[np.int64], device: torch.device) -> Draws:
    """The draws of dataset rows (B,): a pure function of (seed, stream, counter, row)."""
    numbers = torch.from_numpy(np.array(rows, dtype=np.int64)).to(device)
    return Draws(_mix(numbers * _GAMMA + torch_seed(seed, stream, counter)))


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's hash of int64, in place: different numbers stay different."""
    state.bitwise_xor_(_shift(state, 30)).mul_(_FIRST)
    state.bitwise_xor_(_shift(state, 27)).mul_(_SECOND)
    return state.bitwise_xor_(_shift(state, 31))


def _shift(state: Tensor, bits: int) -> Tensor:
    """A logical shift to the right of int64."""
    return (state >> bits).bitwise_and_((1 << (64 - bits)) - 1)


@lru_cache(maxsize=1)
def _quantiles() -> Tensor:
    """(65536,) float32 quantiles of the standard normal distribution, scaled to variance 1.

    A look-up table, since logarithms and cosines differ in the last bit between devices and vector widths.
    """
    middle = (torch.arange(2**16, dtype=torch.float64) + 0.5) * 2.0**-16
    found: Tensor = torch.special.ndtri(middle)
    return (found / found.square().mean().sqrt()).float()
