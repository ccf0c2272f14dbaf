"""Pictures for the tests of corruptions and sequences, and the published algorithms, plainly written."""

from __future__ import annotations

import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
Floats = NDArray[np.float64]


def ramp(side: int) -> Tensor:
    """(1, 3, side, side): columns in red, rows in green, a sawtooth in blue."""
    row, column = np.mgrid[:side, :side]
    planes = [column * 255 // (side - 1), row * 255 // (side - 1), (7 * column + 13 * row) % 256]
    return torch.from_numpy(np.stack(planes).astype(np.uint8))[None]


def noise(count: int, side: int, seed: int = 0) -> Tensor:
    """Pictures with structure at several scales, black and white included."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    fine = torch.rand(count, 3, side, side, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (smooth * 340 - 40 + fine * 30).clamp(0, 255).to(torch.uint8)


def photographs(count: int, side: int) -> Tensor:
    """Square middles of photographs, then their mirror images."""
    path = SHARED / "imagenet-samples" / "photos.tar"
    if not path.exists():
        pytest.skip(f"no photographs: {path} is absent")
    found: list[NDArray[Any]] = []
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and len(found) < count:
                with Image.open(archive.extractfile(member)) as image:  # type: ignore[arg-type]
                    edge = min(image.size)
                    left, top = (image.width - edge) // 2, (image.height - edge) // 2
                    middle = image.convert("RGB").crop((left, top, left + edge, top + edge))
                    found.append(np.array(middle.resize((side, side), Image.Resampling.BILINEAR)))
    pictures = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)
    return torch.cat([pictures, pictures.flip(3)])[:count].contiguous()


def shuffled(image: NDArray[Any], moves: NDArray[np.int64], delta: int) -> NDArray[Any]:
    """Glass blur's rounds of copies, pixel after pixel. image (S, S, 3); moves (rounds, 2, S, S)."""
    result, side = image.copy(), len(image)
    for across, down in moves:
        for row in range(side - delta, delta, -1):
            for column in range(side - delta, delta, -1):
                result[row, column] = result[row + down[row, column], column + across[row, column]]
    return result


def streaked(image: Floats, radius: float, sigma: float, angle: float) -> Floats:
    """ImageMagick's motion blur of (S, S), pixel by pixel of the trail."""
    width, side = 2 * math.ceil(radius) + 1, len(image)
    kernel = [math.exp(-(step**2) / (2 * sigma**2)) for step in range(width)]
    row, column = np.mgrid[:side, :side]
    total = np.zeros((side, side))
    for step, weight in enumerate(kernel):
        right = math.ceil(step * math.cos(math.radians(angle)) - 0.5)
        down = math.ceil(step * math.sin(math.radians(angle)) - 0.5)
        total += weight * image[(row + down).clip(0, side - 1), (column + right).clip(0, side - 1)]
    return np.asarray(total / sum(kernel))


def zoomed(image: Floats, factor: float) -> Floats:
    """The middle of (S, S), enlarged to (S, S)."""
    side = len(image)
    inner = math.ceil(side / factor)
    first = (side - inner) // 2
    large = ndimage.zoom(image[first : first + inner, first : first + inner], factor, order=1)
    trim = (len(large) - side) // 2
    return np.asarray(large[trim : trim + side, trim : trim + side])


def plasma(noise: Floats, decay: float) -> Floats:
    """Diamond-square over a torus with the noise (S, S) in -1 … 1, point by point."""
    size = len(noise)
    heights = np.zeros((size, size))
    amplitude, step = 100.0, size
    while step >= 2:
        half = step // 2

        def settle(row: int, column: int, around: list[tuple[int, int]], amplitude: float) -> None:
            mean = sum(heights[r % size, c % size] for r, c in around) / 4
            heights[row, column] = mean + amplitude**2 * noise[row, column]

        for row in range(half, size, step):
            for column in range(half, size, step):
                corners = [(row + r, column + c) for r in (-half, half) for c in (-half, half)]
                settle(row, column, corners, amplitude)
        for row in range(0, size, half):
            for column in range(half if row % step == 0 else 0, size, step):
                sides = [
                    (row - half, column),
                    (row + half, column),
                    (row, column - half),
                    (row, column + half),
                ]
                settle(row, column, sides, amplitude)
        amplitude, step = amplitude / decay, half
    return np.asarray((heights - heights.min()) / (heights.max() - heights.min()))


def elastic(image: Floats, moves: Floats, field: Floats, strength: float, sigma: float) -> Floats:
    """Elastic transform of (S, S, 3) in 0 … 255 with three points' moves (3, 2) and a field (2, S, S)."""
    import cv2

    side = len(image)
    center, arm = side // 2, side // 3
    before = np.array([[1, 1], [1, -1], [-1, -1]], dtype=np.float32) * arm + center
    matrix = cv2.getAffineTransform(before, (before + moves).astype(np.float32))
    moved = cv2.warpAffine(image.astype(np.float32), matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101)
    if sigma:
        field = np.stack([ndimage.gaussian_filter(one, sigma, mode="reflect", truncate=3) for one in field])
    row, column = np.mgrid[:side, :side]
    places = [row + field[1] * strength, column + field[0] * strength]
    planes = [ndimage.map_coordinates(moved[..., c], places, order=1, mode="reflect") for c in range(3)]
    return np.stack(planes, axis=-1)
