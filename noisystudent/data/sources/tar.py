"""Images in tar shards, read at random, never unpacked: `<class>/<image>` or `key.jpg` beside `key.cls`."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from noisystudent.data.sources.base import Item, Skipped, digest, file_signature, missing_label
from noisystudent.errors import InputError

_OPEN_SHARDS = 64
_BLOCK = 512
_LOST = -1  # size of the item that stands for all that follows a shard's damage


class TarSource:
    """Tar shards; id is `<shard>/<member>`, label the `.cls` beside the image, else the folder that holds it.

    Members are found by reading headers only. Nothing is extracted, so a member's name cannot lead anywhere.
    Of a shard that is cut short or damaged, the members before that point are listed, and one item more that
    cannot be read and so stands for the rest in the ledger.

    Raises:
        InputError: a shard is not a plain tar file; none holds an image.
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
        """Without the open shards: a worker opens its own."""
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = lru_cache(maxsize=_OPEN_SHARDS)(_Shard)

    @property
    def shards(self) -> int:
        """Number of tar files."""
        return len(self._paths)

    def __len__(self) -> int:
        """Number of image members."""
        if self._length is None:
            self._length = sum(1 for _ in self.items())
        return self._length

    def items(self) -> Iterator[Item]:
        """Image members in shard order, then in file order."""
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
        """The bytes of one member."""
        if size == _LOST:
            raise OSError("the shard is cut short or damaged here; what follows is lost")
        return self._open(self._paths[shard]).read(offset, size)

    def fingerprint(self) -> str:
        """Over (name, bytes, mtime) of every shard."""
        return digest(file_signature(path) for path in self._paths)

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """Unknown suffixes, damaged shards."""
        damaged = (
            f"{path}: cut short or damaged from byte {offset}; images after it are lost"
            for path, offset in self._damage.items()
        )
        return (*self._skipped.notes(self.name), *damaged)


class _Shard:
    """One open file; `os.pread` keeps no position, so forks and threads may share it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, fewer where the file ends."""
        pieces = []
        while size > 0 and (piece := os.pread(self._descriptor, size, offset)):
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return b"".join(pieces)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _prefixes(paths: list[Path]) -> list[str]:
    """`""` for one shard; else the shards' names, numbered where two are alike."""
    stems = [path.stem for path in paths]
    if len(paths) == 1:
        return [""]
    unique = len(set(stems)) == len(stems)
    return [f"{stem}/" if unique else f"{number}-{stem}/" for number, stem in enumerate(stems)]


def _images(
    path: Path, skipped: Skipped, damage: dict[Path, int]
) -> Iterator[tuple[str, str | None, int, int]]:
    """(member, label, offset, size) of each image; members sharing a key stand together (webdataset)."""
    key, label, held = "", None, list[tuple[str, int, int]]()
    for member in _members(path, damage, skipped):
        folder, _, base = member.name.rpartition("/")
        if (here := f"{folder}/{base.split('.', 1)[0]}") != key:
            yield from _labeled(held, label)
            key, label, held = here, None, []
        if base.endswith(".cls"):
            label = _Shard(path).read(member.offset_data, member.size).decode("utf-8", "replace").strip()
        elif skipped.is_image(base):
            held.append((member.name.removeprefix("./"), member.offset_data, member.size))
    yield from _labeled(held, label)


def _labeled(
    held: list[tuple[str, int, int]], label: str | None
) -> Iterator[tuple[str, str | None, int, int]]:
    for name, offset, size in held:
        folder = name.rpartition("/")[0].rpartition("/")[2]
        yield name, label or folder or None, offset, size


def _members(path: Path, damage: dict[Path, int], skipped: Skipped) -> Iterator[tarfile.TarInfo]:
    """Regular files of a tar, one at a time; tarfile's own list of members is emptied as it goes.

    Where the shard is damaged, the byte is put down in `damage`; links are counted in `skipped`.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := _next(archive)) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it grows by a kilobyte an image
                if member.isreg():
                    yield member
                elif not member.isdir():
                    skipped.counts["link"] += 1
            # tarfile takes a broken header, or no more bytes, for the end; a true end is a block of zeros
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(_BLOCK) != bytes(_BLOCK):
                damage[path] = min(archive.offset, path.stat().st_size)
    except tarfile.TarError as error:
        raise InputError(
            f"{path}: not an uncompressed tar file ({error}); make it anew or unpack it"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member; none where the file ends within one."""
    try:
        return archive.next()
    except tarfile.ReadError:
        if archive.offset == 0:
            raise
        return None
