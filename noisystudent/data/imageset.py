"""One set of images: its columns, and its pixels at any rows, resolution and crop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from noisystudent.data.decode import Box, DecodeError, crop_resize, decode, view
from noisystudent.data.index import HASH_BYTES, Index
from noisystudent.data.sources import Source
from noisystudent.errors import InputError, RunError

_DEVICE_SHARE = 0.4
_WHOLE = np.array([0.0, 0.0, 1.0, 1.0], np.float32)


Shown = Callable[[Image.Image, int], Tensor]
"""(RGB image, side S) -> (3, S, S) uint8."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one set, rows 0 … N-1; pickles as paths, so that workers open files of their own.

    Attributes:
        name: labeled, val, test or pool.
        classes: the run's class names; labels index them.
        index: the columns of every row on disk.
        source: where the bytes are.
        storage: the resident array (M, 3, S, S) uint8, None when streamed.
        max_pixels: larger images are refused.
        rows: the rows of `index` that belong to the set; None is all.
        shown: makes the clean views of images that are not stored; None is `decode.view`.
    """

    name: str
    classes: tuple[str, ...]
    index: Index
    source: Source
    storage: Path | None
    max_pixels: int
    rows: NDArray[np.int64] | None = None
    shown: Shown | None = None
    _on_device: Tensor | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Paths and rows; no pixels, and no source where the pixels are stored."""
        names = ("name", "classes", "index", "storage", "max_pixels", "rows", "shown")
        state = {name: getattr(self, name) for name in names}
        return state | {"_on_device": None, "source": None if self.resident else self.source}

    def __len__(self) -> int:
        return len(self.index) if self.rows is None else len(self.rows)

    @property
    def resident(self) -> bool:
        """Whether the decoded pixels are stored."""
        return self.storage is not None

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) class numbers, -1 unknown."""
        return self._column("label").astype(np.int64)

    @cached_property
    def truth(self) -> NDArray[np.int64]:
        """(N,) hidden truth of the pool, -1 unknown; for scoring only."""
        return self._column("truth").astype(np.int64)

    @property
    def content_hash(self) -> NDArray[np.uint8]:
        """(N, 16) blake2b of the file's bytes, or of an array's shape and pixels."""
        return self._column("content_hash")

    @property
    def sizes(self) -> NDArray[np.int32]:
        """(N, 2) height and width of the originals in pixels."""
        return np.stack([self._column("height"), self._column("width")], axis=1)

    def squares(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(B, 4) boxes of the middle squares of whole images, as wide as they go."""
        size = self.sizes[rows].astype(np.float64)
        share = size.min(axis=1, keepdims=True) / size
        return np.concatenate([(1 - share) / 2, share], axis=1).astype(np.float32)

    def view_sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """(B, 2) height and width of what a crop box is cut from: the stored square, or the original."""
        if self.resident:
            return np.full((len(rows), 2), self._pixels.shape[-1], np.int32)
        own = self._own(rows)
        return np.stack([self.index.take(name, own) for name in ("height", "width")], axis=1)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The stable ids of some rows."""
        return self.index.ids(self._own(rows))

    def subset(self, rows: NDArray[np.int64]) -> ImageSet:
        """The set of these rows, in this order."""
        return replace(self, rows=self._own(np.asarray(rows, np.int64)))

    def fetch(
        self, rows: NDArray[np.int64], resolution: int, boxes: NDArray[np.float32] | None = None
    ) -> Tensor:
        """Pixels of some rows.

        Args:
            rows: (B,) rows of this set.
            resolution: side R in pixels.
            boxes: (B, 4) crop windows (top, left, height, width) as fractions of the image (of the stored
                square where resident). None: the clean centre view.

        Returns:
            (B, 3, R, R) uint8, on the device the set was put on if it can be gathered there, else on the CPU.

        Raises:
            RunError: an image vanished or changed since it was scanned.
        """
        if self.direct(resolution, boxes is not None):
            pixels = torch.from_numpy(self._pixels) if self._on_device is None else self._on_device
            at = torch.from_numpy(self._stored[rows])
            return pixels.index_select(0, at.to(pixels.device, non_blocking=True))
        views = list(self.views(rows, resolution, boxes))
        return torch.stack(views) if views else torch.empty((0, 3, resolution, resolution), dtype=torch.uint8)

    def views(
        self, rows: NDArray[np.int64], resolution: int, boxes: NDArray[np.float32] | None = None
    ) -> Iterator[Tensor]:
        """What `fetch` gives, image by image: (3, R, R) uint8 on the CPU."""
        own = self._own(rows)
        windows: list[Box | None] = [None] * len(own) if boxes is None else list(boxes)
        if self.resident:
            for row, box in zip(self.index.take("stored", own), windows, strict=True):
                yield crop_resize(self._pixels[row], resolution, _WHOLE if box is None else box)
            return
        columns = (self.index.take(name, own).tolist() for name in ("shard", "offset", "size"))
        hashes = self.index.take("content_hash", own)
        for *place, name, expected, box in zip(*columns, self.index.ids(own), hashes, windows, strict=True):
            yield self._decoded((*place, name), expected.tobytes(), resolution, box)

    def direct(self, resolution: int, boxes: bool) -> bool:
        """Whether `fetch` is one gather, with no work an image."""
        return self.resident and not boxes and self._pixels.shape[-1] == resolution

    def to_device(self, device: torch.device) -> ImageSet:
        """The same set with its resident pixels on a GPU, if they take at most 40 % of its free memory."""
        if not self.resident or device.type != "cuda":
            return self
        if self._pixels.nbytes > _DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, _on_device=torch.from_numpy(np.array(self._pixels)).to(device))

    @cached_property
    def _pixels(self) -> NDArray[np.uint8]:
        # copy on write: torch remarks on arrays that are read-only
        return np.load(self.storage, mmap_mode="c", allow_pickle=False)  # type: ignore[arg-type,no-any-return]

    @cached_property
    def _stored(self) -> NDArray[np.int64]:
        # in memory: between two passes of a network, each call that looks into a file costs tenths of a ms
        return self._column("stored")

    def _own(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows if self.rows is None else self.rows[rows]

    def _column(self, name: str) -> NDArray[Any]:
        return self.index.full(name) if self.rows is None else self.index.take(name, self.rows)

    def _decoded(
        self, place: tuple[int, int, int, str], expected: bytes, resolution: int, box: Box | None
    ) -> Tensor:
        name = place[-1]
        try:
            data = self.source.read(*place)
            if content_hash(data) != expected:
                raise RunError(
                    f"{self.source.name}: {name} changed since it was scanned; run again to scan anew"
                )
            if self.shown is not None and box is None:
                return self.shown(decode(data, self.max_pixels).image, resolution)
            return view(decode(data, self.max_pixels, resolution, box), resolution, box)
        except (OSError, DecodeError, InputError) as error:
            raise RunError(
                f"{self.source.name}: {name} cannot be read any more ({error}); bring it back"
            ) from error


def content_hash(data: bytes | NDArray[np.uint8]) -> bytes:
    """16 bytes: blake2b of a file's bytes, or of an array's shape and pixels."""
    if isinstance(data, bytes):
        return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()
    state = hashlib.blake2b(repr(data.shape).encode(), digest_size=HASH_BYTES)
    state.update(np.ascontiguousarray(data).data)
    return state.digest()
