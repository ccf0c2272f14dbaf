"""Images and a policy for tests of the input noise."""

from __future__ import annotations

import io
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from noisystudent.augment.policies import Policy, RandAugment

PHOTOS = Path(__file__).parents[2] / ".." / "shared" / "data" / "imagenet-samples" / "photos.tar"
FULL = Policy(
    crop="pad",
    flip=True,
    randaugment=RandAugment(num_ops=3, magnitude=9),
    cutout=7,
    translate_const=4,
    cutout_const=4,
)


@cache
def synthetic(side: int, count: int) -> NDArray[np.uint8]:
    """(count, side, side, 3): noise, narrow-range noise, gradients, few levels, flat channels."""
    rng = np.random.default_rng(side)
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    images[1::5] = images[1::5] // 4 + 60
    ramp = np.linspace(0, 200, side)
    for i in range(2, count, 5):
        tilt = rng.uniform(0, 1, 3)
        images[i] = ramp[:, None, None] * tilt + ramp[None, :, None] * (1 - tilt) + rng.integers(0, 55)
    images[3::5] = images[3::5] // 100 * 90
    images[4::5, :, :, 1] = 77
    return images


@cache
def photos(side: int) -> NDArray[np.uint8]:
    """(40, side, side, 3): real photographs."""
    if not PHOTOS.exists():
        pytest.skip(f"no real photographs at {PHOTOS}")
    with tarfile.open(PHOTOS) as tar:
        files = [tar.extractfile(member) for member in tar if member.isfile()]
        data = [file.read() for file in files if file is not None]
    images = []
    for encoded in data:
        image = Image.open(io.BytesIO(encoded))
        image.draft("RGB", (side, side))
        images.append(np.asarray(image.convert("RGB").resize((side, side))))
    return np.stack(images)


def to_torch(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def to_numpy(images: Tensor) -> NDArray[np.uint8]:
    return images.permute(0, 2, 3, 1).numpy()
