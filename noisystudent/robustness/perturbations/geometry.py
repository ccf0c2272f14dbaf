"""Geometric transforms of images: affine maps sampled as in Pillow, and tilts sampled as in OpenCV.

Places outside the image are black.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]


def affine(
    size: tuple[int, int], *, angle: float = 0, scale: float = 1, shear: float = 0, shift: float = 0
) -> Matrix:
    """(3, 3) matrix from a place in the result to a place in the image, measured from the upper left corner.

    The fixed point is the centre of the image, as in torchvision's `affine`. The matrix goes backwards,
    because each pixel of the result is sampled from the image.

    Args:
        size: height and width in pixels.
        angle: rotation, clockwise, in degrees.
        scale: factor of the size.
        shear: shear along the rows, in degrees.
        shift: shift to the right, in pixels.
    """
    radians, slope = math.radians(angle), math.tan(math.radians(shear))
    cosine, sine = math.cos(radians), math.sin(radians)
    forward = scale * np.array([[cosine, -cosine * slope - sine], [sine, cosine - sine * slope]])
    middle = np.array([size[1] / 2, size[0] / 2])
    back = np.eye(3)
    back[:2, :2] = np.linalg.inv(forward)
    back[:2, 2] = middle - back[:2, :2] @ (middle + np.array([shift, 0]))
    return back


def tilt(size: tuple[int, int], degrees: float) -> Matrix:
    """(3, 3) matrix from a pixel of the image to a pixel of the result, rotated by `degrees` about both axes.

    As in the published code, the focal length of the camera is the diagonal of the image, and its distance
    from the image is the diagonal plus 1. So the image is a little smaller even at 0 degrees.
    """
    height, width = size
    distance, radians = math.hypot(width, height), math.radians(degrees)
    cosine, sine = math.cos(radians), math.sin(radians)
    to_space = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1], [0, 0, 1]])
    about_x = np.array([[1, 0, 0, 0], [0, cosine, -sine, 0], [0, sine, cosine, 0], [0, 0, 0, 1]])
    about_y = np.array([[cosine, 0, -sine, 0], [0, 1, 0, 0], [sine, 0, cosine, 0], [0, 0, 0, 1]])
    away = np.eye(4)
    away[2, 3] = distance
    project = np.array([[distance, 0, width / 2, 0], [0, distance, height / 2, 0], [0, 0, 1, 0]])
    return np.asarray(project @ away @ about_x @ about_y @ to_space)


def warp_affine(images: Tensor, back: Matrix, crop: int) -> Tensor:
    """(B, 3, crop, crop) uint8: centre crop of images (B, 3, H, W) under `affine`, bilinear as in Pillow."""
    columns, rows = _places(images, back, crop, offset=0.5)  # Pillow samples at the centres of pixels
    inside = (columns >= 0) & (columns < images.shape[3]) & (rows >= 0) & (rows < images.shape[2])
    sampled = _bilinear(images, columns - 0.5, rows - 0.5)
    return torch.where(inside, sampled.floor_(), 0).to(torch.uint8)  # Pillow truncates


def warp_tilt(images: Tensor, forward: Matrix, crop: int) -> Tensor:
    """(B, 3, crop, crop) uint8: centre crop of images (B, 3, H, W) under `tilt`, bilinear as in OpenCV.

    The OpenCV version that made the published set rounded places to 1/32 of a pixel; here they are exact.
    """
    # One black pixel on every side: OpenCV interpolates between the border and black.
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    columns, rows = _places(images, np.asarray(np.linalg.inv(forward)), crop, offset=0)
    return _bilinear(padded, columns + 1, rows + 1).round_().to(torch.uint8)


def shift_right(images: Tensor, pixels: int, crop: int) -> Tensor:
    """(B, 3, crop, crop): centre crop of images moved right by whole pixels; negative numbers move left."""
    width = images.shape[3]
    moved = torch.zeros_like(images)
    kept = max(0, width - abs(pixels))
    to, source = max(0, pixels), max(0, -pixels)
    moved[..., to : to + kept] = images[..., source : source + kept]
    return center(moved, crop)


def center(images: Tensor, crop: int) -> Tensor:
    """(B, 3, crop, crop): centre crop, as torchvision's CenterCrop."""
    top, left = (round((length - crop) / 2) for length in images.shape[2:])
    return images[..., top : top + crop, left : left + crop]


def _places(images: Tensor, back: Matrix, crop: int, offset: float) -> tuple[Tensor, Tensor]:
    """Columns and rows (crop, crop) float64 in the image for each pixel of the result's centre crop."""
    top, left = (round((length - crop) / 2) for length in images.shape[2:])
    line = torch.arange(crop, dtype=torch.float64, device=images.device) + offset
    column, row = line + left, (line + top)[:, None]
    # Homogeneous coordinates; the depth is 1 for an affine map.
    across, down, depth = (float(a) * column + float(b) * row + float(c) for a, b, c in back)
    return across / depth, down / depth


def _bilinear(images: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """(B, 3, h, w) float64: bilinear samples at columns and rows (h, w); outside, the nearest pixel."""
    height, width = images.shape[2:]
    left, top = columns.floor(), rows.floor()
    pixels = images.flatten(2)

    def pick(column: Tensor, row: Tensor) -> Tensor:
        index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        picked = pixels.index_select(2, index.long().flatten())
        return picked.double().view(*images.shape[:2], *columns.shape)

    upper = torch.lerp(pick(left, top), pick(left + 1, top), columns - left)
    lower = torch.lerp(pick(left, top + 1), pick(left + 1, top + 1), columns - left)
    return torch.lerp(upper, lower, rows - top)
