"""Sources of decoded images: arrays in memory, and `.npz` files."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from noisystudent.data.sources.base import Item, class_name, digest, file_signature, missing_label
from noisystudent.errors import InputError, first_line

_RATIO = 200  # bytes of an array for each byte of its .npz; digits, which are mostly black, have 10
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_SMALL_BYTES = 2**24  # an array of this size is read whatever the ratio is


@dataclass(frozen=True)
class ArraySource:
    """Images in memory.

    The id of an image is its row, such as `00000012`.

    Attributes:
        images: (N, H, W) grey or (N, H, W, 3) RGB, uint8.
        labels: N class names or numbers; see `class_name`. None: no labels.
        name: name in messages, and in ids if there are several sources.
        shards: number of shard numbers in use.

    Raises:
        InputError: the images have another shape or type, or the number of labels differs.
    """

    images: NDArray[np.uint8]
    labels: Sequence[object] | NDArray[np.int64] | None = None
    name: str = "array"
    shards: int = 1
    decoded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        images = self.images
        grey, rgb = images.ndim == 3, images.ndim == 4 and images.shape[-1] == 3
        if images.dtype != np.uint8 or not (grey or rgb):
            given = f"{images.dtype} {tuple(images.shape)}"
            raise InputError(f"{self.name}: images are {given}; they must be uint8 (N, H, W) or (N, H, W, 3)")
        if images.size == 0:
            raise InputError(f"{self.name}: no images in it")
        if isinstance(self.labels, np.ndarray) and self.labels.ndim != 1:
            raise InputError(f"{self.name}: labels are {self.labels.shape}; there must be one for each image")
        if self.labels is not None and len(self.labels) != len(images):
            raise InputError(f"{self.name}: {len(images)} images but {len(self.labels)} labels")
        if self.labels is not None and not isinstance(self.labels, np.ndarray):
            # labels[row] must be the label at position `row`; a pandas Series is indexed by its index instead
            object.__setattr__(self, "labels", list(self.labels))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def items(self) -> Iterator[Item]:
        """Items in the order of the rows."""
        for row in range(len(self.images)):
            label = None if self.labels is None else self.labels[row]
            yield Item(f"{row:08d}", class_name(label, self.name), 0, row, self.images[row].nbytes)

    def read(self, _shard: int, offset: int, _size: int, _name: str, /) -> NDArray[np.uint8]:
        """Pixels (H, W) or (H, W, 3) uint8 of one row."""
        pixels: NDArray[np.uint8] = self.images[offset]
        return pixels

    def fingerprint(self) -> str:
        """Hash of the shape, the pixels and the labels."""
        pixels = hashlib.blake2b(np.ascontiguousarray(self.images).data, digest_size=16).hexdigest()
        labels = () if self.labels is None else map(str, self.labels)
        return digest(iter((self.images.shape, pixels, *labels)))

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """No notes."""
        return ()


class NpzSource:
    """An `.npz` file with the array `images` and optionally `labels`, shaped as in `ArraySource`.

    Pickled arrays are refused, because unpickling can run code.

    Raises:
        InputError: it is not such a file.
    """

    shards = 1
    decoded = True

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._arrays  # noqa: B018 read now, so that a wrong file is an error here and not in a worker

    def __getstate__(self) -> dict[str, object]:
        """State without the arrays; a worker reads the file again."""
        return {"name": self.name, "_path": self._path}

    @cached_property
    def _arrays(self) -> ArraySource:
        try:
            with zipfile.ZipFile(self._path) as file:
                names = {info.filename for info in file.infolist()}
                labels = self._read(file, "labels") if "labels.npy" in names else None
                images = self._read(file, "images") if "images.npy" in names else None
        except InputError:
            raise
        except Exception as error:  # zipfile and numpy raise many types of errors on broken bytes
            reason = first_line(error)
            raise InputError(f"{self.name}: not an .npz file of plain arrays ({reason})") from error
        if images is None:
            raise InputError(f"{self.name}: has no array `images`")
        return ArraySource(images, labels, name=self.name)

    def _read(self, file: zipfile.ZipFile, name: str) -> NDArray[Any]:
        """An array, if the memory that its header names is in proportion to the size of the file."""
        with file.open(f"{name}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            shape, _, dtype = _HEADERS[version](stream)
        size, largest = math.prod(shape) * dtype.itemsize, _RATIO * self._path.stat().st_size
        if min(shape, default=1) < 0 or size > max(largest, _SMALL_BYTES):
            raise InputError(
                f"{self.name}: array `{name}` {shape} takes {size:,} bytes, too many for a file of this size"
            )
        with file.open(f"{name}.npy") as stream:
            array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
            return array

    def __len__(self) -> int:
        """Number of images."""
        return len(self._arrays)

    def items(self) -> Iterator[Item]:
        """Items in the order of the rows."""
        return self._arrays.items()

    def read(self, shard: int, offset: int, size: int, name: str, /) -> NDArray[np.uint8]:
        """Pixels (H, W) or (H, W, 3) uint8 of one row."""
        return self._arrays.read(shard, offset, size, name)

    def fingerprint(self) -> str:
        """Hash of the file's (name, bytes, mtime)."""
        return digest(iter((file_signature(self._path),)))

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """No notes."""
        return ()


def require_labels(source: ArraySource | NpzSource) -> None:
    """Check that every row has a label.

    Raises:
        InputError: a row has no label; the message names the first one.
    """
    for item in source.items():
        if item.label is None:
            raise missing_label(item.id, source.name)
