"""Small image sets on disk."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def encoded(pixels: Pixels, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def random_images(count: int, side: int = 8, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write_folder(root: Path, images: Pixels, name: Callable[[int], str]) -> Path:
    for number, pixels in enumerate(images):
        path = root / name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels))
    return root


def labeled_folder(root: Path, count: int = 12, classes: int = 3, side: int = 8, seed: int = 0) -> Path:
    """`<class>/<number>.png`, class c0 … in turn."""
    return write_folder(root, random_images(count, side, seed), lambda n: f"c{n % classes}/{n:04d}.png")
