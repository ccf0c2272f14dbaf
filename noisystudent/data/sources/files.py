"""A source of single image files, as in `predict RUN a.jpg b.jpg`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from noisystudent.data.sources.base import IMAGE_SUFFIXES, Item, digest, read_image_file
from noisystudent.errors import InputError


def is_image_file(spec: str | Path) -> bool:
    """True if a spec has the suffix of an image file and is not a folder. The file need not exist."""
    path = Path(spec)
    # A missing file counts too; otherwise `open_source` would complain about mixed files and folders.
    return path.suffix.lower() in IMAGE_SUFFIXES and not os.path.isdir(path)


class ImageFiles:
    """A `Source` of image files, in the given order. The id of an image is its path as given.

    Raises:
        InputError: a file does not exist, or is a FIFO, a socket or a device.
    """

    shards = 1
    decoded = False

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._paths = [str(path) for path in paths]
        self.name = self._paths[0] if len(self._paths) == 1 else f"{len(self._paths)} image files"
        for path in self._paths:
            if not os.path.isfile(path):
                kind = "not a regular file" if os.path.exists(path) else "no such file or folder"
                raise InputError(f"{path}: {kind}")

    def __len__(self) -> int:
        """Number of files."""
        return len(self._paths)

    def items(self) -> Iterator[Item]:
        """The files, without labels."""
        # size -1: `read` needs the path only
        return (Item(path, None, 0, 0, -1) for path in self._paths)

    def read(self, _shard: int, _offset: int, _size: int, name: str, /) -> bytes:
        """Bytes of one file."""
        return read_image_file(name)

    def fingerprint(self) -> str:
        """Hash of (path, bytes, mtime) of every file."""
        stats = ((path, Path(path).stat()) for path in self._paths)
        return digest((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """No notes."""
        return ()
