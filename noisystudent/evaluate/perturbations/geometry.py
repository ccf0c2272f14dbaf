"""Moving a picture: affine maps as Pillow samples them, and tilts as OpenCV does; black outside."""

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
    """(3, 3), from a place in the result to one in the image; places count from the upper left corner.

    The image turns and grows about its middle, as in torchvision's `affine`.

    Args:
        size: height and width in pixels.
        angle: clockwise, in degrees.
        scale: how much larger it becomes.
        shear: along the rows, in degrees.
        shift: to the right, in pixels.
    """
    turn, slant = math.radians(angle), math.tan(math.radians(shear))
    cosine, sine = math.cos(turn), math.sin(turn)
    forward = scale * np.array([[cosine, -cosine * slant - sine], [sine, cosine - sine * slant]])
    middle = np.array([size[1] / 2, size[0] / 2])
    back = np.eye(3)
    back[:2, :2] = np.linalg.inv(forward)
    back[:2, 2] = middle - back[:2, :2] @ (middle + np.array([shift, 0]))
    return back


def tilt(size: tuple[int, int], degrees: float) -> Matrix:
    """(3, 3), from a pixel of the image to one of the result, turned by `degrees` about both axes.

    As published: the picture stands at depth 1 of a camera at the distance of its diagonal, so that it is a
    little smaller even at 0 degrees.
    """
    height, width = size
    away, turn = math.hypot(width, height), math.radians(degrees)
    cosine, sine = math.cos(turn), math.sin(turn)
    lift = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1], [0, 0, 1]])
    nod = np.array([[1, 0, 0, 0], [0, cosine, -sine, 0], [0, sine, cosine, 0], [0, 0, 0, 1]])
    shake = np.array([[cosine, 0, -sine, 0], [0, 1, 0, 0], [sine, 0, cosine, 0], [0, 0, 0, 1]])
    recede = np.eye(4)
    recede[2, 3] = away
    project = np.array([[away, 0, width / 2, 0], [0, away, height / 2, 0], [0, 0, 1, 0]])
    return np.asarray(project @ recede @ nod @ shake @ lift)


def warp_affine(images: Tensor, back: Matrix, crop: int) -> Tensor:
    """The middle (B, 3, crop, crop) uint8 of images (B, 3, H, W) under `affine`, bilinear as in Pillow."""
    columns, rows = _places(images, back, crop, offset=0.5)
    inside = (columns >= 0) & (columns < images.shape[3]) & (rows >= 0) & (rows < images.shape[2])
    blended = _bilinear(images, columns - 0.5, rows - 0.5)
    return torch.where(inside, blended.floor_(), 0).to(torch.uint8)


def warp_tilt(images: Tensor, forward: Matrix, crop: int) -> Tensor:
    """The middle (B, 3, crop, crop) uint8 of images (B, 3, H, W) under `tilt`, bilinear as in OpenCV.

    OpenCV fades to black across the border, and rounded places to 1/32 of a pixel in the version that made
    the published set; here they are exact.
    """
    framed = torch.nn.functional.pad(images, (1, 1, 1, 1))
    columns, rows = _places(images, np.asarray(np.linalg.inv(forward)), crop, offset=0)
    return _bilinear(framed, columns + 1, rows + 1).round_().to(torch.uint8)


def shift_right(images: Tensor, pixels: int, crop: int) -> Tensor:
    """The middle (B, 3, crop, crop) of images moved by whole pixels, black where nothing comes from."""
    width = images.shape[3]
    moved = torch.zeros_like(images)
    kept = max(0, width - abs(pixels))
    to, source = max(0, pixels), max(0, -pixels)
    moved[..., to : to + kept] = images[..., source : source + kept]
    return center(moved, crop)


def center(images: Tensor, crop: int) -> Tensor:
    """The middle (B, 3, crop, crop), as torchvision's CenterCrop takes it."""
    top, left = (round((length - crop) / 2) for length in images.shape[2:])
    return images[..., top : top + crop, left : left + crop]


def _places(images: Tensor, back: Matrix, crop: int, offset: float) -> tuple[Tensor, Tensor]:
    """Columns and rows (crop, crop) float64 in the image, of the pixels of the result's middle crop."""
    top, left = (round((length - crop) / 2) for length in images.shape[2:])
    line = torch.arange(crop, dtype=torch.float64, device=images.device) + offset
    column, row = line + left, (line + top)[:, None]
    across, down, depth = (float(a) * column + float(b) * row + float(c) for a, b, c in back)
    return across / depth, down / depth


def _bilinear(images: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """(B, 3, h, w) float64 between the four pixels around each place; outside, the nearest there is."""
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
