"""Cached features on disk: .npy files ("parts"), each with the views of a range of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import RunError, first_line
from noisystudent.run.part_index import Files, PartIndex, read_indices
from noisystudent.run.rundir import PartsDir

Rows = NDArray[np.int64]

_HALF = 2  # bytes of a float16


@dataclass(frozen=True, slots=True)
class Layout:
    """What all parts of a folder have in common.

    Attributes:
        rows: number of images, N.
        views: number of views of each image, V; the clean view is the first.
        width: number of features, F.
        part_rows: images of a part; the last one may have fewer.
        about: everything else that the features depend on.
    """

    rows: int
    views: int
    width: int
    part_rows: int
    about: dict[str, Any]

    def parts(self) -> list[range]:
        """Rows of each part."""
        cuts = range(0, self.rows, self.part_rows)
        return [range(start, min(start + self.part_rows, self.rows)) for start in cuts]

    def is_like(self, other: Layout) -> bool:
        """Return True if the two differ in nothing but the number of images."""
        return replace(self, rows=other.rows) == other


def layout_in(index: PartIndex) -> Layout:
    """Return what all parts of an index have in common."""
    return _layout(index.about)


def _layout(about: Mapping[str, Any]) -> Layout:
    return Layout(**about["layout"])


def new_index(folder: PartsDir, layout: Layout, files: Files) -> PartIndex:
    """Return an index with some parts: name -> checksum, and as `images` a digest of their content hashes."""
    return PartIndex(folder, {"layout": asdict(layout)}, files)


def read_index(folder: PartsDir) -> PartIndex | None:
    """Read parts.json, and those of other processes; None without a readable one: no part is complete."""
    known: PartIndex | None = None
    for index in read_indices(folder, _layout):
        if known is None or known.about == index.about:
            known = replace(index, files=index.files | (known.files if known else {}))
    return known


class Features:
    """Random access to the features of a set of images; the files are memory-mapped.

    Attributes:
        layout: numbers of images, views and features.

    Args:
        folder: folder that `embed_images` wrote.

    Raises:
        RunError: the folder is not complete.
    """

    def __init__(self, folder: PartsDir) -> None:
        index = read_index(folder)
        if index is None or len(index.files) != len(layout_in(index).parts()):
            raise RunError(f"{folder.path} has no complete features; compute them again")
        self._folder, self.layout = folder, layout_in(index)
        self._ranges = self.layout.parts()
        self._parts: dict[int, Tensor] = {}  # the mapped ones

    def __len__(self) -> int:
        return self.layout.rows

    def __call__(self, rows: Rows, views: Rows | int = 0) -> Tensor:
        """Features of one view of each of some images.

        Args:
            rows: (B,) rows.
            views: (B,) numbers of the views, or that of all; 0 is the clean view.

        Returns:
            (B, F) float32.

        Raises:
            RunError: a part is missing or damaged.
        """
        part, local = np.divmod(rows, self.layout.part_rows)
        views = np.broadcast_to(np.asarray(views, np.int64), rows.shape)
        numbers = np.unique(part)
        if len(numbers) == 1:
            return self._take(int(numbers[0]), local, views).float()
        taken = torch.empty((len(rows), self.layout.width), dtype=torch.float16)
        for number in numbers:
            at = np.flatnonzero(part == number)
            taken[torch.from_numpy(at)] = self._take(int(number), local[at], views[at])
        return taken.float()

    def _take(self, number: int, local: Rows, views: Rows) -> Tensor:
        """(b, F) float16, views of some images of a part; `local` counts from its first row."""
        if number not in self._parts:
            self._parts[number] = self._mapped(number)
        count = len(self._parts[number]) // self.layout.views  # images of the part
        return self._parts[number].index_select(0, torch.from_numpy(views * count + local))

    def _mapped(self, number: int) -> Tensor:
        """(V · n, F) float16, a part."""
        path, layout = self._folder.part(number), self.layout
        shape = (layout.views, len(self._ranges[number]), layout.width)
        try:
            with path.open("rb") as file:
                np.lib.format.read_magic(file)
                stored, _, dtype = np.lib.format.read_array_header_1_0(file)
                before = file.tell() // _HALF
            if stored != shape or dtype != np.dtype(np.float16):
                raise ValueError(f"it has {dtype} {stored}, not float16 {shape}")
            # Not numpy: its memory map keeps a file open for each part, and there may be thousands.
            size = before + int(np.prod(shape))
            mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.float16)
        except (OSError, ValueError, RuntimeError) as error:
            raise RunError(
                f"{path} cannot be read ({first_line(error)}); compute the features again"
            ) from error
        return mapped[before:].view(-1, layout.width)
