"""Random numbers for a batch of images, independent for each image and equal on every device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.runtime import GAMMA, mix, torch_seed


@dataclass(frozen=True, slots=True)
class Draws:
    """Random numbers of each image of a batch.

    A number is a hash of three integers: the image's key, a `field` (a small number for each purpose, so that
    two purposes have independent numbers), and the position within the shape. There is no state, and only
    integers are used, so the numbers do not depend on batch size or device.

    Attributes:
        keys: (B,) int64, one for each image.
    """

    keys: Tensor

    def words(self, field: int, *shape: int) -> Tensor:
        """(B, *shape) int32, uniform over all 2**32 values."""
        count = math.prod(shape)
        # Each hash has 64 bits, which are read as two words.
        place = torch.arange(1, -(-count // 2) + 1, device=self.keys.device)
        state = mix(self.keys[:, None] + place.add_(field << 40).mul_(GAMMA))
        return state.view(torch.int32)[:, :count].reshape(len(self.keys), *shape)

    def uniform(self, field: int, *shape: int) -> Tensor:
        """(B, *shape) float32 uniform in [0, 1), in steps of 2**-24: all of them are exact in float32."""
        return (self.words(field, *shape) >> 8).float().mul_(2.0**-24).add_(0.5)

    def below(self, field: int, bound: int, *shape: int) -> Tensor:
        """(B, *shape) int64 uniform in 0 … bound - 1."""
        return self.unsigned(field, *shape).mul_(bound).bitwise_right_shift_(32)

    def unsigned(self, field: int, *shape: int) -> Tensor:
        """(B, *shape) int64 uniform in 0 … 2**32 - 1."""
        return self.words(field, *shape).long().add_(2**31)

    def normal(self, field: int, *shape: int) -> Tensor:
        """(B, *shape) float32 standard normal numbers: 65,536 equally likely quantiles, within ±4.3."""
        count = math.prod(shape)
        # 16 bits select a quantile, so a word gives two numbers.
        words = self.words(field, -(-count // 2)).view(torch.int16)[:, :count]
        place = words.to(torch.int32).add_(2**15)
        table = _quantiles().to(self.keys.device)
        return table.index_select(0, place.flatten()).view(len(self.keys), *shape)


def draws_of(seed: int, stream: str, counter: int, rows: NDArray[np.int64], device: torch.device) -> Draws:
    """The random numbers of images in rows (B,) of their data set, a pure function of all four arguments.

    Args:
        seed: seed of the test.
        stream: name of the purpose.
        counter: a number within the purpose, such as the severity or the frame.
        rows: (B,).
        device: device of the numbers.
    """
    numbers = torch.from_numpy(np.array(rows, dtype=np.int64)).to(device)
    return Draws(mix(numbers * GAMMA + torch_seed(seed, stream, counter)))


@lru_cache(maxsize=1)
def _quantiles() -> Tensor:
    """(65536,) float32 quantiles of the standard normal distribution, scaled to variance 1.

    It is used as a look-up table, because logarithms and cosines differ in the last bit between devices and
    vector widths.
    """
    middle = (torch.arange(2**16, dtype=torch.float64) + 0.5) * 2.0**-16
    quantiles: Tensor = torch.special.ndtri(middle)
    return (quantiles / quantiles.square().mean().sqrt()).float()
