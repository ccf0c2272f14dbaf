"""Functions that write small image sets to disk and open them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data.prepare import Dataset, open_dataset, prepare
from noisystudent.data.sources import Sources, open_sources
from noisystudent.run.rundir import DataDir

Pixels = NDArray[np.uint8]


class StopAfter(Progress):
    """A signal comes when the work has looked for one a number of times."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self._left = checks

    def check(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.stop.signal = "SIGTERM"
        super().check()


def encoded(pixels: NDArray[Any], kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    """The pixels of a JPEG file of these."""
    return np.asarray(Image.open(io.BytesIO(encoded(pixels, "JPEG", quality=quality))))


def ramp(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 2, y * 3, x + y], axis=-1).astype(np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image with detail down to a dozen pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def random_images(count: int, side: int = 8, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write_folder(root: Path, images: Pixels, name: Callable[[int], str]) -> Path:
    for number, pixels in enumerate(images):
        path = root / name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels))
    return root


def labeled_folder(root: Path, count: int = 12, classes: int = 3, side: int = 8, seed: int = 0) -> Path:
    """`count` images `<class>/<number>.png`; their classes are c0, c1, … again and again."""
    return write_folder(root, random_images(count, side, seed), lambda n: f"c{n % classes}/{n:04d}.png")


def prepared(config: DataConfig, out: Path, sources: Sources | None = None, seed: int = 0) -> Dataset:
    """Scan the images into the folder `out` and open it."""
    sources = sources or open_sources(config)
    prepare(config, sources, DataDir(out), seed, Progress())
    return open_dataset(DataDir(out), config, sources)


def make(out: Path, sources: Sources | None = None, seed: int = 0, **options: Any) -> Dataset:
    """As `prepared`, with fields of `DataConfig` as keyword arguments."""
    return prepared(DataConfig(**({"resolution": 8, "workers": 0} | options)), out, sources, seed)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))
