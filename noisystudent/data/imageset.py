"""One set of images: columns such as label and id, and pixels of any rows at any resolution and crop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from noisystudent.data.decode import Box, DecodeError, clean_share, crop_resize, decode
from noisystudent.data.decode import view as crop_view
from noisystudent.data.gpu_decode import suits_gpu
from noisystudent.data.index import Index, content_hash
from noisystudent.data.sources import Place, Source, prefetch
from noisystudent.data.transfer import upload
from noisystudent.errors import InputError, RunError

_DEVICE_SHARE = 0.4  # of the free GPU memory; the rest is for the model, its gradients and activations
_AHEAD = 64  # images that are read from a store together


View = Callable[[Image.Image, int], Tensor]
"""Function from (RGB image, side S in pixels) to a view (3, S, S) uint8."""


@dataclass(frozen=True, eq=False)  # eq=False: arrays have no single truth value to compare by
class ImageSet:
    """Images of one set, rows 0 … N-1.

    Pickling stores paths, not pixels or open files; each worker opens the files itself.

    Attributes:
        name: labeled, val, test or pool.
        classes: class names of the run. A label is an index into them.
        index: columns of all rows, on disk.
        source: reads the bytes of an image. None in a worker if the set is resident.
        storage: the file with the decoded pixels (M, 3, S, S) uint8 of a resident set. None: the set is
            streamed, and images are decoded each time they are fetched.
        max_pixels: images with more pixels are refused.
        rows: rows of `index` that belong to the set. None: all rows.
        view: makes the clean views of a streamed set. None: `decode.view`.
        decoder: where batches of a streamed set for a GPU are decoded, see `encoded`.
    """

    name: str
    classes: tuple[str, ...]
    index: Index
    source: Source
    storage: Path | None
    max_pixels: int
    rows: NDArray[np.int64] | None = None
    view: View | None = None
    decoder: Literal["cpu", "gpu"] = "cpu"
    _on_device: Tensor | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """State without pixels, and without the source if the set is resident."""
        names = ("name", "classes", "index", "storage", "max_pixels", "rows", "view", "decoder")
        state = {name: getattr(self, name) for name in names}
        # The source is left out because an array source would copy all its images to each worker.
        return state | {"_on_device": None, "source": None if self.resident else self.source}

    def __len__(self) -> int:
        return len(self.index) if self.rows is None else len(self.rows)

    @property
    def resident(self) -> bool:
        """True if the decoded pixels are stored on disk."""
        return self.storage is not None

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) class numbers; -1 if unknown."""
        return self._column("label").astype(np.int64)

    @cached_property
    def truth(self) -> NDArray[np.int64]:
        """(N,) true classes of the pool images, -1 if unknown. They are used for evaluation only."""
        return self._column("truth").astype(np.int64)

    @property
    def content_hash(self) -> NDArray[np.uint8]:
        """(N, 16) content hashes, see the function `content_hash`."""
        return self._column("content_hash")

    def at(self, resolution: int) -> ImageSet:
        """This set for views of a side; images are decoded anew if the stored squares show less of them."""
        if not self.resident:
            return self
        stored = self._pixels.shape[-1]
        if resolution <= stored and clean_share(resolution) <= clean_share(stored):
            return self
        return replace(self, storage=None, _on_device=None)

    def about(self, resolution: int) -> dict[str, object]:
        """What the pixels of the clean views `at` a resolution depend on, besides the images."""
        own = self.at(resolution)
        if own.resident and not own.direct(resolution, boxes=False):
            return {"stored": own._pixels.shape[-1]}
        return {"decoder": "gpu"} if own.on_gpu else {}

    def view_sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """(B, 2) height and width in pixels of the image that a crop box refers to.

        This is the stored square if the set is resident, otherwise the original image.
        """
        if self.resident:
            return np.full((len(rows), 2), self._pixels.shape[-1], np.int32)
        at = self._index_rows(rows)
        return np.stack([self.index.take(name, at) for name in ("height", "width")], axis=1)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of `rows`. An id stays the same from run to run."""
        return self.index.ids(self._index_rows(rows))

    def subset(self, rows: NDArray[np.int64]) -> ImageSet:
        """The set of `rows`, in the given order."""
        return replace(self, rows=self._index_rows(np.asarray(rows, np.int64)))

    def fetch(
        self, rows: NDArray[np.int64], resolution: int, boxes: NDArray[np.float32] | None = None
    ) -> Tensor:
        """Pixels of some rows.

        Args:
            rows: (B,) rows of this set.
            resolution: side R in pixels.
            boxes: (B, 4) crop boxes (top, left, height, width) as fractions of the image, or of the stored
                square if the set is resident. None: the clean view.

        Returns:
            (B, 3, R, R) uint8. They are on the GPU if `to_device` moved the pixels there and R is the stored
            resolution and `boxes` is None; otherwise on the CPU.

        Raises:
            RunError: an image is missing or has changed since the scan.
        """
        if self.direct(resolution, boxes is not None):
            pixels = torch.from_numpy(self._pixels) if self._on_device is None else self._on_device
            (at,) = upload([torch.from_numpy(self._stored[rows])], pixels.device)
            return pixels.index_select(0, at)
        views = list(self.views(rows, resolution, boxes))
        return torch.stack(views) if views else torch.empty((0, 3, resolution, resolution), dtype=torch.uint8)

    def views(
        self, rows: NDArray[np.int64], resolution: int, boxes: NDArray[np.float32] | None = None
    ) -> Iterator[Tensor]:
        """The images of `fetch` one by one, each (3, R, R) uint8 on the CPU."""
        if self.resident:
            stored = self.index.take("stored", self._index_rows(rows))
            for row, box in zip(stored, each_box(boxes, len(rows)), strict=True):
                yield crop_resize(self._pixels[row], resolution, box)
            return
        for name, data, box in self._files(rows, boxes):
            yield self._decoded(name, data, resolution, box)

    def originals(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Some images at full size, each (H, W, 3) uint8 RGB. They are read from the source, always.

        Raises:
            RunError: an image is missing or has changed since the scan.
        """
        for name, data, _ in self._files(rows, None):
            with self._readable(name):
                pixels = decode(data, self.max_pixels).pixels
            yield pixels

    def encoded(
        self, rows: NDArray[np.int64], resolution: int, boxes: NDArray[np.float32] | None = None
    ) -> Iterator[bytes | Tensor]:
        """The images of `views`, but the bytes of those that `decoder` leaves to a GPU."""
        if not self.on_gpu:
            yield from self.views(rows, resolution, boxes)
            return
        for name, data, box in self._files(rows, boxes):
            own = self.view is not None and box is None
            if isinstance(data, bytes) and not own and suits_gpu(data, resolution, box):
                yield data
            else:
                yield self._decoded(name, data, resolution, box)

    def fetch_ahead(self, rows: NDArray[np.int64]) -> None:
        """Bring the bytes of some rows from a store into the local cache; without a store do nothing.

        What cannot be read is an error of `fetch`.
        """
        if not self.resident:
            places = self.places(rows)
            for start in range(0, len(places), _AHEAD):
                prefetch(self.source, places[start : start + _AHEAD])

    @property
    def on_gpu(self) -> bool:
        """True if a GPU decodes images of this set."""
        return self.decoder == "gpu" and not self.resident

    def direct(self, resolution: int, boxes: bool) -> bool:
        """True if `fetch` only copies stored pixels, without decoding or resizing (`boxes`: with boxes)."""
        return self.resident and not boxes and self._pixels.shape[-1] == resolution

    @cached_property
    def _pixels(self) -> NDArray[np.uint8]:
        # mode "c" (copy on write) and not "r": torch.from_numpy warns about read-only arrays
        return np.load(self.storage, mmap_mode="c", allow_pickle=False)  # type: ignore[arg-type,no-any-return]

    @cached_property
    def _stored(self) -> NDArray[np.int64]:
        # Copied into memory: reading it from the file costs tenths of a ms for each batch, between two
        # forward passes of the model.
        return self._column("stored")

    def _index_rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of `index` for rows of this set."""
        return rows if self.rows is None else self.rows[rows]

    def _column(self, name: str) -> NDArray[Any]:
        return self.index.full(name) if self.rows is None else self.index.take(name, self.rows)

    def places(self, rows: NDArray[np.int64]) -> list[Place]:
        """Where the bytes of some rows are in the source."""
        at = self._index_rows(rows)
        columns = (self.index.take(name, at).tolist() for name in ("shard", "offset", "size"))
        return list(zip(*columns, self.index.ids(at), strict=True))

    def _files(
        self, rows: NDArray[np.int64], boxes: NDArray[np.float32] | None
    ) -> Iterator[tuple[str, bytes | NDArray[np.uint8], Box | None]]:
        """Id, content and crop box of some rows, read from the source."""
        hashes = self.index.take("content_hash", self._index_rows(rows))
        windows, places = each_box(boxes, len(rows)), self.places(rows)
        for number, (place, expected, box) in enumerate(zip(places, hashes, windows, strict=True)):
            if number % _AHEAD == 0:
                prefetch(self.source, places[number : number + _AHEAD])
            name = place[-1]
            with self._readable(name):
                data = self.source.read(*place)
            # Labels, splits and pseudo-labels belong to the scanned content; other bytes would get them too.
            if content_hash(data) != expected.tobytes():
                raise RunError(
                    f"{self.source.name}: {name} changed since it was scanned; run again to scan it again"
                )
            yield name, data, box

    def _decoded(
        self, name: str, data: bytes | NDArray[np.uint8], resolution: int, box: Box | None
    ) -> Tensor:
        """View (3, R, R) uint8 of an image."""
        with self._readable(name):
            if self.view is not None and box is None:
                return self.view(decode(data, self.max_pixels).image, resolution)
            return crop_view(decode(data, self.max_pixels, resolution, box), resolution, box)

    @contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, DecodeError, InputError) as error:
            raise RunError(
                f"{self.source.name}: {name} cannot be read any more ({error}); restore it and run again"
            ) from error


def each_box(boxes: NDArray[np.float32] | None, count: int) -> list[Box | None]:
    """The crop box of each of `count` images."""
    return [None] * count if boxes is None else list(boxes)


def to_device(sets: Sequence[ImageSet], device: torch.device) -> list[ImageSet]:
    """The same sets, with their stored pixels on a GPU. All together use at most 40 % of its free memory.

    Args:
        sets: the first ones are moved first, and those that do not fit any more stay.
        device: if it is not a GPU, nothing is moved.
    """
    if device.type != "cuda":
        return list(sets)
    left = _DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]
    moved: dict[Path | None, Tensor] = {}  # by storage: val may be some rows of that of the labelled images
    for images in sets:
        if images.resident and images.storage not in moved and images._pixels.nbytes <= left:
            left -= images._pixels.nbytes
            moved[images.storage] = _moved(images._pixels, device)
    return [replace(images, _on_device=moved.get(images.storage)) for images in sets]


def _moved(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(pixels)).to(device)
