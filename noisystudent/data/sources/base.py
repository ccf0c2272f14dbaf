"""What every source of images offers, and which files count as images."""

from __future__ import annotations

import glob
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from noisystudent.errors import InputError

_COMMON = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
IMAGE_SUFFIXES = frozenset((*_COMMON, ".ppm", ".pgm", ".pbm"))
_SIDECARS = frozenset(
    (".txt", ".json", ".cls", ".csv", ".tsv", ".md", ".xml", ".yaml", ".yml", ".db", ".ini")
)


class Item(NamedTuple):
    """One image as its source lists it, before anything is decoded.

    `label` is the class name the source gives it (for a pool: the hidden truth), None when it gives none.
    (shard, offset, size) is where its bytes are: shard is the file of a sharded source, offset and size are
    bytes in a tar shard, offset is the row in Parquet files and arrays; size -1 is unknown.
    """

    id: str
    label: str | None
    shard: int
    offset: int
    size: int


class Source(Protocol):
    """Images by stable id, in an order that depends on nothing but their names."""

    @property
    def name(self) -> str:
        """What the user called it, for messages."""

    @property
    def shards(self) -> int:
        """How many shard numbers it uses."""

    def __len__(self) -> int:
        """Number of images; the first call may walk the whole source."""

    def items(self) -> Iterator[Item]:
        """Every image once, in the same order each time; nothing is kept per image."""

    def read(self, shard: int, offset: int, size: int, name: str, /) -> bytes | NDArray[np.uint8]:
        """The file's bytes, or for arrays the pixels (H, W) or (H, W, 3). Raises OSError if it is gone."""

    def fingerprint(self) -> str:
        """Changes when a file is added, removed, renamed or rewritten; reads no image."""

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """What the caller should know: empty classes, files left out, damage; complete once `items` has run.

        With `streamed`, also what it costs to read images one by one in any order.
        """


@dataclass
class Skipped:
    """Counts files that are no images and no known companions of images, by suffix."""

    counts: Counter[str]

    def is_image(self, path: str) -> bool:
        """Whether `path` names an image; an unknown suffix is counted, a hidden file or side-car is not."""
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
        """One line about what was left out, or none."""
        if not self.counts:
            return ()
        listed = ", ".join(f"{suffix}: {count}" for suffix, count in sorted(self.counts.items()))
        return (f"{name}: files that are no images were left out ({listed})",)


def digest(parts: Iterator[object]) -> str:
    """A hexadecimal fingerprint of a sequence of printable values."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(repr(part).encode("utf-8", "surrogateescape") + b"\n")
    return state.hexdigest()


def file_signature(path: Path) -> tuple[str, int, int]:
    """(name, bytes, mtime in ns) of one file."""
    stat = path.stat()
    return path.name, stat.st_size, stat.st_mtime_ns


def expand(spec: str | Path) -> list[Path]:
    """The files or the folder a spec names, glob patterns resolved, sorted.

    Raises:
        InputError: nothing is there.
    """
    if not str(spec):
        raise InputError("an empty name stands for images; name a folder or a file")
    path = Path(spec).expanduser()
    if path.exists():
        return [path]
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise InputError(f"{spec}: no such file or folder")
    return found


def missing_label(item_id: str, name: str) -> InputError:
    """The error for an image without a label where labels are needed."""
    return InputError(
        f"{name}: image {item_id} has no label; a labelled set is <class>/<image>, or has a label column"
    )
