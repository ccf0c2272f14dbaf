"""Digital corruptions: each function takes images (B, 3, S, S) uint8 and returns values in 0 … 255."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from noisystudent.robustness.corruptions import kernels
from noisystudent.robustness.corruptions.draws import Draws


def contrast(images: Tensor, _draws: Draws, share: float) -> Tensor:
    """Lower contrast: the distance of each value from its channel's mean is multiplied by `share`."""
    mean = images.mean((2, 3), dtype=torch.float64, keepdim=True)
    return (images - mean).mul_(share).add_(mean)


def saturate(images: Tensor, _draws: Draws, factor: float, offset: float) -> Tensor:
    """HSV saturation times `factor` plus `offset`; hue and value are kept, and the hue of grey is red."""
    pixels = images.double()
    value = pixels.amax(1, keepdim=True)
    span = value - pixels.amin(1, keepdim=True)
    saturation = (span / value.clamp(min=1) * factor + offset).clamp_(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64, device=images.device).view(3, 1, 1)
    # 0 … 1: distance of each channel below the largest one, relative to the span of the channels.
    depth = torch.where(span > 0, (value - pixels) / span, red)
    return value * (1 - saturation * depth)


def pixelate(images: Tensor, _draws: Draws, share: float) -> Tensor:
    """Resized to `share` of the side and back to the full side, both with Pillow's box filter."""
    side = images.shape[-1]
    small = max(1, int(side * share))
    boxes = _boxes(side, small).to(images.device)
    # Along the rows first, as Pillow does: each pass rounds, so the order matters.
    coarse = _mean((_mean(images.float(), boxes)).mT, boxes).mT
    # For each pixel the coarse pixel that contains its centre.
    place = (torch.arange(side, device=images.device) * 2 + 1) * small // (2 * side)
    return coarse.index_select(2, place).index_select(3, place)


def _mean(levels: Tensor, boxes: Tensor) -> Tensor:
    """Means of whole numbers (…, S) over boxes (S, T), with halves rounded up.

    The products are 0 or a grey level, so the result is exact at any precision of the matrix product.
    """
    count = boxes.sum(0)
    return ((levels @ boxes) * 2 + count).div_(2 * count).floor_()


@lru_cache(maxsize=32)
def _boxes(source: int, target: int) -> Tensor:
    """(source, target) float32: 1 if the centre of a source pixel is within a target pixel, else 0."""
    edges = np.arange(target) * source / target
    middle = np.arange(source)[:, None] + 0.5
    inside = (middle > edges) & (middle <= edges + source / target)
    return torch.from_numpy(inside.astype(np.float32))


def jpeg_compression(images: Tensor, _draws: Draws, quality: float) -> Tensor:
    """JPEG compression by Pillow (4:2:0 chroma subsampling), on the CPU, one image at a time."""
    return resave(images, int(quality))


def resave(images: Tensor, quality: int) -> Tensor:
    """(B, 3, S, S) uint8 images, saved as JPEG of `quality` and decoded again."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    saved = np.empty_like(pixels)
    for row, image in enumerate(pixels):
        file = BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        with Image.open(file) as decoded:
            saved[row] = decoded
    return torch.from_numpy(saved).permute(0, 3, 1, 2).contiguous().to(images.device)


def elastic_transform(images: Tensor, draws: Draws, strength: float, sigma: float, affine: float) -> Tensor:
    """Elastic transform: a random affine map, then a smooth random displacement of every pixel.

    The affine map moves three points by up to `affine` pixels. The displacement is uniform noise in -1 … 1,
    smoothed by `sigma` pixels and multiplied by `strength`.
    """
    side = images.shape[-1]
    moved = _warp(images.float(), _affine_places(draws, side, affine), align_corners=True)
    noise = draws.uniform(1, 2, side, side).mul_(2).sub_(1)
    smooth = kernels.gaussian(side, sigma, truncate=3.0, border="reflect")
    shift = kernels.separable(noise, smooth).mul_(strength).permute(0, 2, 3, 1)  # (B, S, S, 2) across, down
    return _warp(moved, _grid(side, images.device) + shift, align_corners=False)


def _grid(side: int, device: torch.device) -> Tensor:
    """(S, S, 2) float64 column and row of each pixel."""
    line = torch.arange(side, dtype=torch.float64, device=device)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)


def _affine_places(draws: Draws, side: int, reach: float) -> Tensor:
    """(B, S, S, 2) source of each pixel under a random affine map; it moves three points by up to `reach`."""
    device = draws.keys.device
    center, arm = side // 2, side // 3
    corners = [[1, 1, 1], [1, -1, 1], [-1, -1, 1]]
    before = torch.tensor(corners, dtype=torch.float64, device=device)
    before[:, :2] = before[:, :2] * arm + center
    after = before.repeat(len(draws.keys), 1, 1)
    after[..., :2] += draws.uniform(0, 3, 2).double().mul_(2).sub_(1).mul_(reach)
    # (B, 3, 2): (column, row, 1) @ back is the source of a pixel
    back: Tensor = torch.linalg.solve(after, before[:, :2])
    places = _grid(side, device)
    return (places.view(1, -1, 2) @ back[:, :2] + back[:, 2:]).view(-1, side, side, 2)


def _warp(images: Tensor, places: Tensor, *, align_corners: bool) -> Tensor:
    """Bilinear samples of the images at places (B, S, S, 2), given as column and row.

    Outside, the image is mirrored: with `align_corners` about the centre of the last pixel (OpenCV's
    BORDER_REFLECT_101), otherwise about its edge (scipy's "reflect").
    """
    side = images.shape[-1]
    # grid_sample takes coordinates in -1 … 1.
    scaled = places * 2 / (side - 1) - 1 if align_corners else (places * 2 + 1) / side - 1
    return functional.grid_sample(
        images, scaled.float(), mode="bilinear", padding_mode="reflection", align_corners=align_corners
    )
