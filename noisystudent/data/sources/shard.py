"""A shard: a file that holds images, on disk or in a store; formats read it without knowing where it is."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import pyarrow as pa

from noisystudent.data.sources.base import Row, file_signature, open_file
from noisystudent.data.sources.remote import RemoteShard, fetch_ahead
from noisystudent.data.sources.threads import in_threads
from noisystudent.errors import InputError


class Reader(Protocol):
    """An open shard. Forks and threads may share it."""

    def read(self, offset: int, size: int, /) -> bytes:
        """`size` bytes at `offset`; fewer if the file ends before.

        Raises:
            OSError: they cannot be read.
            RunError: the shard is remote, and was replaced since it was named.
        """


class Shard(Protocol):
    """A file that holds images. It can be pickled."""

    def __hash__(self) -> int:
        """Open shards are kept by it."""

    @property
    def name(self) -> str:
        """Path or URL, for messages."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def on_disk(self) -> bool:
        """False if it pays to fetch ranges ahead."""

    @property
    def headers_at_once(self) -> int:
        """Bytes that are read at once when headers are listed."""

    def signature(self) -> tuple[object, ...]:
        """(file name, bytes, time of its last change or etag)."""

    def open(self) -> Reader:
        """Reader of ranges."""

    def stream(self) -> io.RawIOBase:
        """The file as a stream that can seek."""

    def arrow(self) -> Any:
        """The file as a file of Arrow."""

    def listing(self, rows: Callable[[Any], Iterator[Row]], /) -> Iterator[Row]:
        """`rows(self)`; a remote shard keeps them, so that it is listed once.

        Raises:
            InputError: the file is local and cannot be read.
        """


@dataclass(frozen=True)
class LocalShard:
    """A file on disk; see `Shard`."""

    path: Path

    on_disk = True
    """No range has to be fetched ahead."""
    headers_at_once = io.DEFAULT_BUFFER_SIZE
    """Bytes that are read at once when headers are listed."""

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size

    def signature(self) -> tuple[object, ...]:
        """(file name, bytes, mtime in ns)."""
        return file_signature(self.path)

    def open(self) -> Reader:
        """Reader of ranges."""
        return _OpenFile(self.path)

    def stream(self) -> io.RawIOBase:
        """The file as a stream."""
        return io.FileIO(self.path)

    def arrow(self) -> Any:
        """The file, memory-mapped."""
        return pa.memory_map(str(self.path))

    def listing(self, rows: Callable[[Any], Iterator[Row]], /) -> Iterator[Row]:
        """`rows` of this shard."""
        try:
            yield from rows(self)
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({error.strerror or error})") from error


class _OpenFile:
    """`os.pread` does not use the file position, so forks and threads can share the file."""

    def __init__(self, path: Path) -> None:
        self._descriptor = open_file(path)

    def read(self, offset: int, size: int, /) -> bytes:
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


def ahead(ranges: Iterable[tuple[Shard, int, int]]) -> None:
    """Bring ranges (shard, offset, size) of remote shards into memory together; others are on disk."""
    fetch_ahead((one, offset, size) for one, offset, size in ranges if isinstance(one, RemoteShard))


def listings(
    shards: Sequence[Shard], rows: Callable[[Shard], Iterator[Row]]
) -> Iterator[tuple[int, Iterator[Row]]]:
    """Number and rows of each shard, in order. Remote shards are listed several at once."""

    def listed(shard: RemoteShard) -> None:
        if not shard.is_listed(rows):
            for _ in shard.listing(rows):
                pass

    remote = [shard for shard in shards if isinstance(shard, RemoteShard)]
    with closing(in_threads(listed, remote)) as done:
        for number, shard in enumerate(shards):
            if isinstance(shard, RemoteShard):
                next(done)
            yield number, shard.listing(rows)


def source_name(shards: Sequence[Shard], kind: str) -> str:
    """Name of a source of some shards, such as `photos/pool (12 tar shards)`."""
    first = shards[0].name
    return first if len(shards) == 1 else f"{first.rpartition('/')[0] or '.'} ({len(shards)} {kind})"


def file_name(shard: Shard) -> PurePosixPath:
    """File name of a shard, without its folder."""
    return PurePosixPath(shard.name.rpartition("/")[2])
