"""A source of images in tar shards, read in place: `<class>/<image>`, or `key.jpg` with `key.cls`."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from noisystudent.data.sources.base import (
    Item,
    Skipped,
    digest,
    file_signature,
    missing_label,
    open_file,
    require_size,
)
from noisystudent.errors import InputError, first_line

_OPEN_SHARDS = 64  # open at once; the operating system limits the open files of a process
_BLOCK = 512  # bytes; a tar file consists of blocks of this size
_HEADER = 2**14  # bytes of the largest header: one with the longest path has 4,096
_LABEL = 2**12  # bytes of the longest text of a `.cls`
_LOST = -1  # size of the item that represents all members after the damage of a shard


class TarSource:
    """Image files in one or several uncompressed tar files ("shards").

    The id of an image is `<shard>/<member>`, or `<member>` if there is only one shard. Its label is the text
    of the `.cls` member with the same key (webdataset format), or otherwise the folder that directly contains
    it. Only the headers are read to list the members. Nothing is extracted, so that a member name such as
    `../../x` is harmless. If a shard is cut short or damaged, the members before the damage are listed, and
    one more item that cannot be read. This item represents the lost members in the ledger.

    Raises:
        InputError: a shard is not an uncompressed tar file, or there are no images.
    """

    def __init__(self, paths: list[Path], labeled: bool) -> None:
        self.name = str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths)} tar shards)"
        self._paths = paths
        self._labeled = labeled
        self._prefixes = _prefixes(paths)
        self._skipped = Skipped(Counter())
        self._damage: dict[Path, int] = {}
        self._length: int | None = None
        self._open = lru_cache(maxsize=_OPEN_SHARDS)(_Shard)
        if next(self.items(), None) is None:
            raise InputError(f"{self.name}: no images in it")

    def __getstate__(self) -> dict[str, Any]:
        """State without open files; a worker opens the shards itself."""
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = lru_cache(maxsize=_OPEN_SHARDS)(_Shard)

    @property
    def shards(self) -> int:
        """Number of tar files."""
        return len(self._paths)

    def __len__(self) -> int:
        """Number of image members, and of damaged shards."""
        if self._length is None:
            self._length = sum(1 for _ in self.items())
        return self._length

    def items(self) -> Iterator[Item]:
        """Image members, shard by shard, in the order of each file."""
        self._skipped.counts.clear()
        self._damage.clear()
        count = 0
        for shard, path in enumerate(self._paths):
            prefix = self._prefixes[shard]
            for member, label, offset, size in _images(path, self._skipped, self._damage):
                if label is None and self._labeled:
                    raise missing_label(member, str(path))
                yield Item(prefix + member, label, shard, offset, size)
                count += 1
            if path in self._damage:
                offset = self._damage[path]
                yield Item(f"{prefix}{path.name}@{offset}", None, shard, offset, _LOST)
                count += 1
        self._length = count

    def read(self, shard: int, offset: int, size: int, _name: str, /) -> bytes:
        """Bytes of one member."""
        if size == _LOST:
            raise OSError("the shard is cut short or damaged here; all images after this point are lost")
        require_size(size)
        return self._open(self._paths[shard]).read(offset, size)

    def fingerprint(self) -> str:
        """Hash of (name, bytes, mtime) of every shard."""
        return digest(file_signature(path) for path in self._paths)

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """Unknown suffixes and damaged shards."""
        damaged = (
            f"{path}: cut short or damaged from byte {offset}; images after it are lost"
            for path, offset in self._damage.items()
        )
        return (*self._skipped.notes(self.name), *damaged)


class _Shard:
    """One open file. `os.pread` does not use the file position, so forks and threads can share the file."""

    def __init__(self, path: Path) -> None:
        self._descriptor = open_file(path)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`; fewer if the file ends before."""
        # the size in a header may be larger than memory
        size = min(size, os.fstat(self._descriptor).st_size - offset)
        pieces = []  # one call may return fewer bytes than requested
        while size > 0 and (piece := os.pread(self._descriptor, size, offset)):
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return b"".join(pieces)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _prefixes(paths: list[Path]) -> list[str]:
    """Prefix of the ids of each shard: its name, numbered if two are equal; empty for a single shard."""
    stems = [path.stem for path in paths]
    if len(paths) == 1:
        return [""]
    unique = len(set(stems)) == len(stems)
    return [f"{stem}/" if unique else f"{number}-{stem}/" for number, stem in enumerate(stems)]


def _images(
    path: Path, skipped: Skipped, damage: dict[Path, int]
) -> Iterator[tuple[str, str | None, int, int]]:
    """(member, label, offset, size) of each image of a shard.

    Members with the same key (path without suffixes) follow each other in the webdataset format. The images
    of a key are therefore kept back until the next key, because the `.cls` may come after them.
    """
    key, label, images = "", None, list[tuple[str, int, int]]()
    for member in _members(path, damage, skipped):
        folder, _, base = member.name.rpartition("/")
        if (here := f"{folder}/{base.split('.', 1)[0]}") != key:
            yield from _labeled(images, label)
            key, label, images = here, None, []
        if base.endswith(".cls"):
            # "replace": a label that is not UTF-8 must not stop the listing of all other images
            text = _Shard(path).read(member.offset_data, min(member.size, _LABEL))
            label = text.decode("utf-8", "replace").strip()
        elif skipped.is_image(base):
            # `tar -C folder .` writes "./" before each name; without it, ids equal those of the folder
            images.append((member.name.removeprefix("./"), member.offset_data, member.size))
    yield from _labeled(images, label)


def _labeled(
    images: list[tuple[str, int, int]], label: str | None
) -> Iterator[tuple[str, str | None, int, int]]:
    """(member, label, offset, size) of the images of one key."""
    for name, offset, size in images:
        folder = name.rpartition("/")[0].rpartition("/")[2]
        yield name, label or folder or None, offset, size


def _members(path: Path, damage: dict[Path, int], skipped: Skipped) -> Iterator[tarfile.TarInfo]:
    """Regular files of a tar file, one by one.

    Args:
        path: the file.
        damage: the first lost byte is added to it, if the file is damaged.
        skipped: links and special files are counted in it.

    Raises:
        InputError: not an uncompressed tar file, or it cannot be read.
    """
    try:
        with _Headers(path) as file, _opened(path, file) as archive:
            last = -1
            while (member := _next(archive)) is not None:
                archive.members = []  # type: ignore[attr-defined]  # otherwise a kilobyte for each member
                # A size that no file has; or the member would be read again and again.
                if not 0 <= member.size < 2**63 or member.offset <= last:
                    archive.offset = member.offset
                    break
                last = member.offset
                if member.issparse():
                    skipped.counts["sparse file"] += 1
                elif member.isreg():
                    yield member
                elif not member.isdir():
                    skipped.counts["link"] += 1
            # tarfile also stops at a broken header and where a file is cut; a real end is a block of zeros
            size = path.stat().st_size
            file.seek(min(archive.offset, size))
            if file.read(_BLOCK) != bytes(_BLOCK):
                damage[path] = min(archive.offset, size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _opened(path: Path, file: io.BufferedReader) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except Exception as error:  # tarfile raises many types of errors on broken headers
        raise InputError(
            f"{path}: not an uncompressed tar file ({first_line(error)});"
            " create it without compression, or unpack it"
        ) from error


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member; None at the end, and where the file is cut or its headers are damaged."""
    start = archive.offset
    try:
        return archive.next()
    except Exception:  # as above; the caller sees that the file does not end here
        archive.offset = start
        return None


class _Headers(io.BufferedReader):
    """A tar file of which tarfile reads the headers only; the size in a header may be larger than memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        """`size` bytes.

        Raises:
            tarfile.ReadError: no header is so large.
        """
        if size is None or not 0 <= size <= _HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)
