"""A source of images in tar shards, read in place: `<class>/<image>`, or `key.jpg` with `key.cls`."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from noisystudent.data.sources.base import (
    LOST,
    OTHERS,
    Item,
    Place,
    Row,
    Skipped,
    Unreadable,
    digest,
    missing_label,
    require_size,
)
from noisystudent.data.sources.shard import Reader, Shard, ahead, file_name, listings, source_name
from noisystudent.errors import InputError, NoisyStudentError, first_line

_OPEN_SHARDS = 64  # open at once; the operating system limits the open files of a process
_BLOCK = 512  # bytes; a tar file consists of blocks of this size
_HEADER = 2**20  # bytes of the largest header, with attributes of a file; of zeros, 10,240 end a tar file
_LABEL = 2**12  # bytes of the longest text of a `.cls`


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

    decoded = False

    def __init__(self, shards: list[Shard], labeled: bool) -> None:
        self.name = source_name(shards, "tar shards")
        self._shards = shards
        self._labeled = labeled
        self._prefixes = _prefixes(shards)
        self._skipped = Skipped(Counter())
        self._damage: dict[str, int] = {}
        self._length: int | None = None
        self._open = lru_cache(maxsize=_OPEN_SHARDS)(_opened)
        # Not `items`, which lists remote shards ahead.
        if next(self._items(enumerate(shard.listing(_rows) for shard in shards)), None) is None:
            raise InputError(f"{self.name}: no images in it")

    def __getstate__(self) -> dict[str, Any]:
        """State without open files; a worker opens the shards itself."""
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = lru_cache(maxsize=_OPEN_SHARDS)(_opened)

    @property
    def shards(self) -> int:
        """Number of tar files."""
        return len(self._shards)

    def __len__(self) -> int:
        """Number of image members, and of damaged shards."""
        if self._length is None:
            self._length = sum(1 for _ in self.items())
        return self._length

    def items(self) -> Iterator[Item]:
        """Image members, shard by shard, in the order of each file."""
        return self._items(listings(self._shards, _rows))

    def _items(self, listed: Iterable[tuple[int, Iterator[Row]]]) -> Iterator[Item]:
        self._skipped.counts.clear()
        self._damage.clear()
        count = 0
        for shard, rows in listed:
            name = self._shards[shard].name
            for row in rows:
                if row.size == OTHERS:
                    self._skipped.counts[row.name] += row.offset
                    continue
                if row.size == LOST:
                    self._damage[name] = row.offset
                elif row.label is None and self._labeled:
                    raise missing_label(row.name, name)
                yield Item(self._prefixes[shard] + row.name, row.label, shard, row.offset, row.size)
                count += 1
        self._length = count

    def read(self, shard: int, offset: int, size: int, _name: str, /) -> bytes:
        """Bytes of one member."""
        if size == LOST:
            self._open(self._shards[shard]).read(offset, 1)  # raises the reason if a store does not give it
            raise OSError("the shard is cut short or damaged here; all images after this point are lost")
        require_size(size)
        return self._open(self._shards[shard]).read(offset, size)

    def prefetch(self, places: Sequence[Place], /) -> None:
        """See `base.prefetch`."""
        ahead((self._shards[shard], offset, size) for shard, offset, size, _ in places if size > 0)

    def fingerprint(self) -> str:
        """Hash of (name, bytes, mtime or etag) of every shard."""
        return digest(shard.signature() for shard in self._shards)

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """Unknown suffixes and damaged shards."""
        damaged = (
            f"{name}: cut short or damaged from byte {offset}, or not readable; images after it are lost"
            for name, offset in self._damage.items()
        )
        return (*self._skipped.notes(self.name), *damaged)


def _opened(shard: Shard) -> Reader:
    return shard.open()


def _prefixes(shards: list[Shard]) -> list[str]:
    """Prefix of the ids of each shard: its name, numbered if two are equal; empty for a single shard."""
    stems = [file_name(shard).stem for shard in shards]
    if len(shards) == 1:
        return [""]
    unique = len(set(stems)) == len(stems)
    return [f"{stem}/" if unique else f"{number}-{stem}/" for number, stem in enumerate(stems)]


def _rows(shard: Shard) -> Iterator[Row]:
    """Rows of a shard: its images, then its damage and other files, if there are any.

    Members with the same key (path without suffixes) follow each other in the webdataset format. The images
    of a key are therefore kept back until the next key, because the `.cls` may come after them.

    Raises:
        InputError: not an uncompressed tar file.
        OSError: it cannot be read.
    """
    skipped, damage = Skipped(Counter()), list[int]()
    key, label, images = "", None, list[tuple[str, int, int]]()
    for member in _members(shard, damage, skipped):
        folder, _, base = member.name.rpartition("/")
        if base.startswith("."):  # such as ._1.cls, which macOS puts between the files of a key
            continue
        if (here := f"{folder}/{base.split('.', 1)[0]}") != key:
            yield from _labeled(images, label)
            key, label, images = here, None, []
        if base.endswith(".cls"):
            # "replace": a label that is not UTF-8 must not stop the listing of all other images
            text = shard.open().read(member.offset_data, min(member.size, _LABEL))
            label = text.decode("utf-8", "replace").strip()
        elif skipped.is_image(base):
            # `tar -C folder .` writes "./" before each name; without it, ids equal those of the folder
            images.append((member.name.removeprefix("./"), member.offset_data, member.size))
    yield from _labeled(images, label)
    yield from (Row(f"{file_name(shard)}@{offset}", None, offset, LOST) for offset in damage)
    yield from (Row(suffix, None, count, OTHERS) for suffix, count in skipped.counts.items())


def _labeled(images: list[tuple[str, int, int]], label: str | None) -> Iterator[Row]:
    """Rows of the images of one key."""
    for name, offset, size in images:
        folder = name.rpartition("/")[0].rpartition("/")[2]
        yield Row(name, label or folder or None, offset, size)


def _members(shard: Shard, damage: list[int], skipped: Skipped) -> Iterator[tarfile.TarInfo]:
    """Regular files of a tar file, one by one.

    Args:
        shard: the file.
        damage: the first lost byte is added to it, if the file is damaged.
        skipped: links and special files are counted in it.

    Raises:
        InputError: not an uncompressed tar file.
        OSError: it cannot be read.
    """
    with _Headers(shard.stream(), shard.headers_at_once) as file, _archive(shard, file) as archive:
        last = -1
        while (member := _next(archive) or _appended(archive, file)) is not None:
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
        # tarfile also stops at a broken header and where a file is cut; a real end is a block of zeros.
        end = min(archive.offset, shard.size)
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            damage.append(end)


def _archive(shard: Shard, file: io.BufferedReader) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except (Unreadable, NoisyStudentError):
        raise
    except Exception as error:  # tarfile raises many types of errors on broken headers
        raise InputError(
            f"{shard.name}: not an uncompressed tar file ({first_line(error)});"
            " create it without compression, or unpack it"
        ) from error


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member; None at the end, and where the file is cut or its headers are damaged."""
    start = archive.offset
    try:
        return archive.next()
    except (Unreadable, NoisyStudentError):  # the file need not be damaged
        raise
    except Exception:  # as above; the caller sees that the file does not end here
        archive.offset = start
        return None


def _appended(archive: tarfile.TarFile, file: io.BufferedReader) -> tarfile.TarInfo | None:
    """The first member of a tar file that was appended to another one, as by `cat`; None if there is none."""
    file.seek(archive.offset)
    rest = file.read(_HEADER)
    zeros = len(rest) - len(rest.lstrip(b"\0"))
    if zeros < _BLOCK or zeros == len(rest):
        return None
    archive.offset += zeros // _BLOCK * _BLOCK
    return _next(archive)


class _Headers(io.BufferedReader):
    """A tar file of which tarfile reads the headers only; the size in a header may be larger than memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        """`size` bytes.

        Raises:
            tarfile.ReadError: no header is so large.
        """
        if size is None or not 0 <= size <= _HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)
