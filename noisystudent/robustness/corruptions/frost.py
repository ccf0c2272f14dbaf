"""Load the photographs for the corruption frost from a folder or an installed package."""

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
"""The five photographs used for the published sets. Their code also loads frost6.jpg but never selects it."""

_PACKAGE = "imagecorruptions"


@dataclass(frozen=True, slots=True, eq=False)
class Frost:
    """Five photographs of frost.

    Attributes:
        photographs: (3, H, W) uint8 each, of different sizes.
        source: the folder or package that they were read from, for the report.
    """

    photographs: tuple[Tensor, ...]
    source: str

    def digest(self) -> str:
        """Hash of the pixels."""
        digest = hashlib.blake2b(digest_size=16)
        for photograph in self.photographs:
            digest.update(photograph.numpy().tobytes())
        return digest.hexdigest()

    def scaled(self, scale: float, side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All photographs at `scale` times their size, flattened into one tensor.

        A photograph that would be too small for a crop of `side` pixels is scaled by more.

        Returns:
            Pixels (3, N) uint8; widths, heights and indices of the first pixels, (5,) int64 each.
        """
        return _scaled(self, scale, side, device)


@lru_cache(maxsize=4)
def _scaled(
    frost: Frost, scale: float, side: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    resized = [_resize(photo, max(scale, (side + 1) / min(photo.shape[1:]))) for photo in frost.photographs]
    sizes = torch.tensor([photo.shape[1:] for photo in resized])
    counts = sizes.prod(1)
    pixels = torch.cat([photo.flatten(1) for photo in resized], 1)
    parts = (pixels, sizes[:, 1], sizes[:, 0], counts.cumsum(0) - counts)
    return tuple(part.to(device) for part in parts)  # type: ignore[return-value]


def _resize(photograph: Tensor, scale: float) -> Tensor:
    """Bilinear resizing without antialiasing at any scale, as in OpenCV."""
    if scale == 1:
        return photograph
    resized = functional.interpolate(photograph[None].float(), scale_factor=scale, mode="bilinear")
    return resized[0].round().to(torch.uint8)


def find_frost(folder: Path | None = None) -> Frost | None:
    """The photographs in `folder` or of the installed package imagecorruptions; None if there are none.

    Without photographs the corruption frost is left out, and a mean over the other 14 corruptions is not mCE.

    Args:
        folder: a folder with the `FILES`; None: look for the package.

    Raises:
        InputError: the folder lacks one of `FILES`, or one is not an image.
    """
    if folder is not None:
        return _read(folder, str(folder))
    spec = find_spec(_PACKAGE)  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        return None
    within = Path(spec.submodule_search_locations[0]) / "frost"
    return _read(within, f"the package {_PACKAGE}") if within.is_dir() else None


def _read(folder: Path, source: str) -> Frost:
    photographs = []
    for name in FILES:
        try:
            with Image.open(folder / name) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(
                f"{folder} must hold {', '.join(FILES)} of ImageNet-C; {name} cannot be read: {error}"
            ) from error
        photographs.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous())
    return Frost(tuple(photographs), source)
