"""The protocol of an image source, and functions that sources share."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from noisystudent.errors import InputError

_COMMON = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
IMAGE_SUFFIXES = frozenset((*_COMMON, ".ppm", ".pgm", ".pbm"))
# files that image sets often have beside their images; they are skipped without a note
_SIDECARS = frozenset(
    (".txt", ".json", ".cls", ".csv", ".tsv", ".md", ".xml", ".yaml", ".yml", ".db", ".ini")
)


LARGEST_IMAGE = 2**30
"""Largest image file that is read, in bytes. 100 megapixels of 16-bit RGBA take 0.8 GB uncompressed."""


class Item(NamedTuple):
    """One image of a source, before it is decoded.

    Attributes:
        id: stable id, unique in the source.
        label: class name; in a pool, the true class, which is used for evaluation only. None: unknown.
        shard: number of the file, if the source has several.
        offset: first byte in a tar shard; the row in a Parquet file or an array; otherwise 0.
        size: bytes of the image; -1 if unknown.
    """

    id: str
    label: str | None
    shard: int
    offset: int
    size: int


Place = tuple[int, int, int, str]
"""Shard, offset, size and id of an `Item`: the arguments of `Source.read`."""


class Row(NamedTuple):
    """One line of the listing of a shard.

    Attributes:
        name: name of the image in the shard.
        label: class name. None: unknown.
        offset: as in `Item`.
        size: as in `Item`. LOST: the row stands for all images that a damage took, or that cannot be listed.
            OTHERS: it stands for `offset` files that are not images, and `name` is their suffix.
    """

    name: str
    label: str | None
    offset: int
    size: int


LOST, OTHERS = -2, -3


class Unreadable(OSError):
    """A store does not give the bytes of a shard. The shard itself need not be damaged."""


class Source(Protocol):
    """Images with stable ids, in an order that depends on their names only."""

    @property
    def name(self) -> str:
        """Name of the source in messages, as the user gave it."""

    @property
    def shards(self) -> int:
        """Number of shard numbers in use."""

    @property
    def decoded(self) -> bool:
        """True if images are arrays in memory, which each worker process would have a copy of."""

    def __len__(self) -> int:
        """Number of images. The first call may list the whole source."""

    def items(self) -> Iterator[Item]:
        """All images, in the same order each time. Memory does not grow with their number."""

    def read(self, shard: int, offset: int, size: int, name: str, /) -> bytes | NDArray[np.uint8]:
        """Bytes of an image's file; for arrays, pixels (H, W) or (H, W, 3) uint8.

        The arguments are the fields of the `Item`; `name` is its id.

        Raises:
            OSError: the image cannot be read.
        """

    def fingerprint(self) -> str:
        """Hash that changes if a file is added, removed, renamed or rewritten. No image file is read."""

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """Messages for the user, such as empty classes, skipped files and damage.

        They are complete after `items` has listed all images. With `streamed`, they include the cost of
        reading images one by one in random order.
        """


@runtime_checkable
class _Prefetching(Protocol):
    def prefetch(self, places: Sequence[Place], /) -> None: ...


def prefetch(source: Source, places: Sequence[Place]) -> None:
    """Tell a source which images are read next: a remote one brings them in few requests, all at once.

    Nothing is raised: an image that cannot be brought is an error of `read`.
    """
    if isinstance(source, _Prefetching):
        source.prefetch(places)


@dataclass
class Skipped:
    """Counts of the files that are neither images nor side-cars of images.

    Attributes:
        counts: number of files for each suffix.
    """

    counts: Counter[str]

    def is_image(self, path: str) -> bool:
        """True if `path` names an image. Other files are counted, except hidden files and side-cars."""
        name = path.rpartition("/")[2]
        stem, dot, end = name.rpartition(".")
        suffix = (dot + end).lower() if stem and end else ""
        if name.startswith("."):
            return False
        if suffix in IMAGE_SUFFIXES:
            return True
        if suffix not in _SIDECARS:
            self.counts[suffix or "no suffix"] += 1
        return False

    def notes(self, name: str) -> tuple[str, ...]:
        """A line with the counts, if any file was skipped."""
        if not self.counts:
            return ()
        listed = ", ".join(f"{suffix}: {count}" for suffix, count in sorted(self.counts.items()))
        return (f"{name}: files that are not images were left out ({listed})",)


class Digest:
    """Hash of a sequence of values, computed from their `repr`."""

    def __init__(self) -> None:
        self._state = hashlib.blake2b(digest_size=16)

    def add(self, part: object) -> None:
        """Append a value to the sequence."""
        # the newline separates values; surrogateescape keeps bytes of file names that are not UTF-8
        self._state.update(repr(part).encode("utf-8", "surrogateescape") + b"\n")

    def hex(self) -> str:
        """32 hexadecimal digits."""
        return self._state.hexdigest()


def digest(parts: Iterator[object]) -> str:
    """Hash of a sequence of values, as 32 hexadecimal digits."""
    state = Digest()
    for part in parts:
        state.add(part)
    return state.hex()


def open_file(path: str | Path) -> int:
    """A descriptor for reading a file, opened without waiting.

    A pool may hold anything: opening a FIFO would wait for a writer, and opening a device may change it.

    Raises:
        OSError: there is no such file, it cannot be opened, or it is a FIFO, a socket, a device or a folder.
    """
    _require_file(os.stat(path))
    # O_NONBLOCK: the file may have been replaced since then. It has no effect on regular files.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _require_file(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_image_file(path: str | Path) -> bytes:
    """Bytes of an image file.

    Raises:
        OSError: as in `open_file`, or the file is larger than `LARGEST_IMAGE`.
    """
    with open(open_file(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        require_size(size)
        return file.read(size)


def require_size(size: int) -> None:
    """Check the number of bytes of an image file, before they are read.

    Raises:
        OSError: there are more than `LARGEST_IMAGE`.
    """
    if size > LARGEST_IMAGE:
        raise OSError(f"{size:,} bytes; an image file may have {LARGEST_IMAGE:,}")


def _require_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")


def file_signature(path: Path) -> tuple[str, int, int]:
    """(name, bytes, mtime in ns) of a file."""
    stat = path.stat()
    return path.name, stat.st_size, stat.st_mtime_ns


def class_name(label: object, name: str) -> str | None:
    """Class name of a value of a label column; None if it is unknown: None, -1, or no text.

    Raises:
        InputError: it is neither text nor a whole number of at least -1. `name` is the source.
    """
    if label is None or isinstance(label, str):
        return None if label in (None, "", "-1") else label
    if isinstance(label, int | np.integer) and not isinstance(label, bool) and label >= -1:
        return str(label) if label >= 0 else None
    raise InputError(f"{name}: label {label!r}; a label is text or a whole number, or -1 if it is unknown")


def missing_label(item_id: str, name: str) -> InputError:
    """The error for an image of a labelled set that has no label."""
    return InputError(
        f"{name}: image {item_id} has no label; give folders <class>/<image>, or data with a label column"
    )
