"""Digital: contrast, elastic, pixelate, JPEG, saturation; each takes (B, 3, S, S) uint8, returns 0 … 255."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from noisystudent.evaluate.corruptions import kernels
from noisystudent.evaluate.corruptions.draws import Draws


def contrast(images: Tensor, _draws: Draws, share: float) -> Tensor:
    """Each channel drawn towards its mean, `share` of its distance kept."""
    mean = images.mean((2, 3), dtype=torch.float64, keepdim=True)
    return (images - mean).mul_(share).add_(mean)


def saturate(images: Tensor, _draws: Draws, factor: float, offset: float) -> Tensor:
    """The saturation of HSV times `factor`, plus `offset`; hue and value stay, and the hue of grey is red."""
    pixels = images.double()
    value = pixels.amax(1, keepdim=True)
    span = value - pixels.amin(1, keepdim=True)
    saturation = (span / value.clamp(min=1) * factor + offset).clamp_(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64, device=images.device).view(3, 1, 1)
    depth = torch.where(span > 0, (value - pixels) / span, red)  # 0 … 1: how far below the strongest channel
    return value * (1 - saturation * depth)


def pixelate(images: Tensor, _draws: Draws, share: float) -> Tensor:
    """Shrunk to `share` of the side and enlarged again, both by Pillow's box filter."""
    side = images.shape[-1]
    small = max(1, int(side * share))
    boxes = _boxes(side, small).to(images.device)
    coarse = _mean((_mean(images.float(), boxes)).mT, boxes).mT  # rows first, as Pillow does
    place = (torch.arange(side, device=images.device) * 2 + 1) * small // (2 * side)  # under its middle
    return coarse.index_select(2, place).index_select(3, place)


def _mean(levels: Tensor, boxes: Tensor) -> Tensor:
    """Means of whole numbers (…, S) over boxes (S, T), halves rounded up: exact at any matrix precision."""
    count = boxes.sum(0)
    return ((levels @ boxes) * 2 + count).div_(2 * count).floor_()


@lru_cache(maxsize=32)
def _boxes(source: int, target: int) -> Tensor:
    """(source, target) float32: 1 where the middle of a source pixel lies within a target pixel."""
    edges = np.arange(target) * source / target
    middle = np.arange(source)[:, None] + 0.5
    inside = (middle > edges) & (middle <= edges + source / target)
    return torch.from_numpy(inside.astype(np.float32))


def jpeg_compression(images: Tensor, _draws: Draws, quality: float) -> Tensor:
    """Saved as JPEG by Pillow and read again: 4:2:0, on the CPU, one image at a time."""
    return resave(images, int(quality))


def resave(images: Tensor, quality: int) -> Tensor:
    """(B, 3, S, S) uint8 as they come back from JPEG files of `quality`."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    saved = np.empty_like(pixels)
    for row, picture in enumerate(pixels):
        file = BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        with Image.open(file) as image:
            saved[row] = image
    return torch.from_numpy(saved).permute(0, 3, 1, 2).contiguous().to(images.device)


def elastic_transform(images: Tensor, draws: Draws, strength: float, sigma: float, affine: float) -> Tensor:
    """Three points moved by up to `affine` pixels, then all by smooth noise of `sigma`, times `strength`."""
    side = images.shape[-1]
    moved = _warp(images.float(), _affine_places(draws, side, affine), align_corners=True)
    noise = draws.uniform(1, 2, side, side).mul_(2).sub_(1)
    smooth = kernels.gaussian(side, sigma, truncate=3.0, border="reflect")
    shift = kernels.separable(noise, smooth).mul_(strength).permute(0, 2, 3, 1)  # (B, S, S, 2) across, down
    return _warp(moved, _grid(side, images.device) + shift, align_corners=False)


def _grid(side: int, device: torch.device) -> Tensor:
    """(S, S, 2) float64 column and row of every pixel."""
    line = torch.arange(side, dtype=torch.float64, device=device)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)


def _affine_places(draws: Draws, side: int, reach: float) -> Tensor:
    """(B, S, S, 2) where each pixel comes from when three points around the middle move within `reach`."""
    device = draws.keys.device
    center, arm = side // 2, side // 3
    corners = [[1, 1, 1], [1, -1, 1], [-1, -1, 1]]
    before = torch.tensor(corners, dtype=torch.float64, device=device)
    before[:, :2] = before[:, :2] * arm + center
    after = before.repeat(len(draws.keys), 1, 1)
    after[..., :2] += draws.uniform(0, 3, 2).double().mul_(2).sub_(1).mul_(reach)
    # (B, 3, 2): (column, row, 1) @ back is the source
    back: Tensor = torch.linalg.solve(after, before[:, :2])
    places = _grid(side, device)
    return (places.view(1, -1, 2) @ back[:, :2] + back[:, 2:]).view(-1, side, side, 2)


def _warp(images: Tensor, places: Tensor, *, align_corners: bool) -> Tensor:
    """Bilinear samples at (B, S, S, 2) columns and rows.

    Outside it is mirrored about the last pixel's middle (`align_corners`, OpenCV's BORDER_REFLECT_101) or
    its edge (scipy's "reflect").
    """
    side = images.shape[-1]
    scaled = places * 2 / (side - 1) - 1 if align_corners else (places * 2 + 1) / side - 1
    return functional.grid_sample(
        images, scaled.float(), mode="bilinear", padding_mode="reflection", align_corners=align_corners
    )
