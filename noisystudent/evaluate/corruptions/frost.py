"""The photographs of frost: found in a folder or an installed package, never made up."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from noisystudent.errors import InputError

FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The five that the published sets were made with; their code never chooses its sixth, frost6.jpg."""

_PACKAGE = "imagecorruptions"


@dataclass(frozen=True, slots=True, eq=False)
class Frost:
    """Five photographs of frost.

    Attributes:
        pictures: (3, H, W) uint8 each, of different sizes.
        source: where they came from, for the report.
    """

    pictures: tuple[Tensor, ...]
    source: str

    def digest(self) -> str:
        """Of the pixels."""
        found = hashlib.blake2b(digest_size=16)
        for picture in self.pictures:
            found.update(picture.numpy().tobytes())
        return found.hexdigest()

    def scaled(self, scale: float, side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All pictures end to end, at `scale` times their size, or larger where `side` would not fit.

        Returns:
            Pixels (3, N) uint8; widths, heights and first pixels (5,) int64.
        """
        return _scaled(self, scale, side, device)


@lru_cache(maxsize=4)
def _scaled(
    frost: Frost, scale: float, side: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pictures = [
        _resize(picture, max(scale, (side + 1) / min(picture.shape[1:]))) for picture in frost.pictures
    ]
    sizes = torch.tensor([picture.shape[1:] for picture in pictures])
    counts = sizes.prod(1)
    pixels = torch.cat([picture.flatten(1) for picture in pictures], 1)
    parts = (pixels, sizes[:, 1], sizes[:, 0], counts.cumsum(0) - counts)
    return tuple(part.to(device) for part in parts)  # type: ignore[return-value]


def _resize(picture: Tensor, scale: float) -> Tensor:
    """As OpenCV does: bilinear between the pixels next to the place, whatever the scale."""
    if scale == 1:
        return picture
    wide = functional.interpolate(picture[None].float(), scale_factor=scale, mode="bilinear")
    return wide[0].round().to(torch.uint8)


def find_frost(folder: Path | None = None) -> Frost | None:
    """The photographs in `folder`, else those in an installed package imagecorruptions, else None.

    Without them there is no frost, and a mean over the other 14 corruptions is not mCE.

    Raises:
        InputError: the folder lacks one of `FILES`, or one is not an image.
    """
    if folder is not None:
        return _read(folder, str(folder))
    spec = find_spec(_PACKAGE)  # looks, and imports nothing
    if spec is None or not spec.submodule_search_locations:
        return None
    within = Path(spec.submodule_search_locations[0]) / "frost"
    return _read(within, f"the package {_PACKAGE}") if within.is_dir() else None


def _read(folder: Path, source: str) -> Frost:
    pictures = []
    for name in FILES:
        try:
            with Image.open(folder / name) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(
                f"{folder} should hold {', '.join(FILES)} of ImageNet-C: {name}: {error}"
            ) from error
        pictures.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous())
    return Frost(tuple(pictures), source)
