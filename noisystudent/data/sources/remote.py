"""A shard in a store: read in blocks, neighbours in one request, through memory and the local cache."""

from __future__ import annotations

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from noisystudent.data.sources.base import LOST, Row, Unreadable
from noisystudent.data.sources.cache import BLOCK, Cache, key_of
from noisystudent.data.sources.stores import READING, Entry, open_store, split
from noisystudent.data.sources.threads import in_threads

_REQUEST = 2**23 // BLOCK  # blocks in the largest request
_MEMORY = 2**26 // BLOCK  # blocks that a process keeps in memory
_AHEAD = _MEMORY // 2  # blocks that are fetched ahead; they must not push each other out
_REST_SECONDS = 60.0  # for which a shard that failed is left alone: each of its images would wait as long
_FORMAT = 2  # of listings: another number lists all shards again

_Place = tuple["RemoteShard", int]  # a shard and the number of a block


@dataclass(frozen=True)
class RemoteShard:
    """A file of images in a store; see `shard.Shard`.

    Nothing is open in it. Each process opens the store by itself, because stores are not fork-safe.

    Attributes:
        url: its URL.
        entry: its path, size and version in the store.
        cache: where its listing and its blocks are kept.
    """

    url: str
    entry: Entry
    cache: Cache

    on_disk = False
    """Ranges are better fetched ahead."""
    headers_at_once = 2**22
    """Bytes of a request when headers are listed: small images are passed over in it."""

    @property
    def name(self) -> str:
        """The URL."""
        return self.url

    @property
    def size(self) -> int:
        """Bytes."""
        return self.entry.size

    def signature(self) -> tuple[object, ...]:
        """(file name, bytes, etag)."""
        return self.url.rpartition("/")[2], self.entry.size, self.entry.version

    def open(self) -> RemoteShard:
        """The shard itself: stores have no open files."""
        return self

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`; fewer if the file ends before.

        Raises:
            Unreadable: they cannot be read.
            RunError: the shard was replaced.
        """
        places = self.blocks(offset, size)
        blocks = _blocks(places)
        start = offset % BLOCK
        return b"".join(_good(blocks[place]) for place in places)[start : start + size]

    def blocks(self, offset: int, size: int) -> list[_Place]:
        """The blocks that hold the bytes of a range; none if it is outside the file."""
        stop = min(offset + size, self.size)
        if not 0 <= offset < stop:
            return []
        return [(self, number) for number in range(offset // BLOCK, (stop - 1) // BLOCK + 1)]

    def stream(self) -> io.RawIOBase:
        """The shard as a stream that can seek."""
        return _Stream(self)

    def arrow(self) -> Any:
        """The shard as a file of Arrow."""
        return pa.PythonFile(_Stream(self), "r")

    def listing(self, rows: Callable[[Any], Iterator[Row]]) -> Iterator[Row]:
        """`rows` of this shard, kept in the cache when they are complete.

        If the shard cannot be read, its last row stands for all images that are lost. It is not kept.
        """
        key = self._key(rows)
        if (kept := self.cache.rows(key)) is not None:
            yield from kept
            return
        listed: list[Row] = []
        try:
            for row in rows(self):
                listed.append(row)
                yield row
        except Unreadable:
            yield Row(f"{self.signature()[0]}@{len(listed)}", None, listed[-1].offset if listed else 0, LOST)
            return
        self.cache.keep_rows(key, listed)

    def is_listed(self, rows: Callable[[Any], Iterator[Row]]) -> bool:
        """True if the listing is in the cache."""
        return self.cache.rows(self._key(rows)) is not None

    def _key(self, rows: Callable[[Any], Iterator[Row]]) -> bytes:
        return key_of(_FORMAT, rows.__module__, self.url, self.entry)


def fetch_ahead(ranges: Iterable[tuple[RemoteShard, int, int]]) -> None:
    """Bring ranges (shard, offset, size) into memory together, up to a limit; `read` then has them.

    What cannot be read is an error in `read`.
    """
    wanted: dict[_Place, None] = {}
    for shard, offset, size in ranges:
        wanted |= dict.fromkeys(shard.blocks(offset, size))
        if len(wanted) > _AHEAD:
            break
    _blocks(list(wanted)[:_AHEAD])


class _Stream(io.RawIOBase):
    """A shard as a stream."""

    def __init__(self, shard: RemoteShard) -> None:
        super().__init__()
        self._shard, self._at = shard, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + (0, self._at, self._shard.size)[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        data = self._shard.read(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Memory:
    """The blocks that this process has used last, and the shards that have failed a moment ago."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Arrow reads in threads of its own
        self._blocks: OrderedDict[_Place, bytes] = OrderedDict()
        self._failed: dict[RemoteShard, tuple[float, Unreadable]] = {}

    def get(self, place: _Place) -> bytes | None:
        with self._lock:
            if place in self._blocks:
                self._blocks.move_to_end(place)
            return self._blocks.get(place)

    def put(self, blocks: dict[_Place, bytes]) -> None:
        with self._lock:
            self._blocks |= blocks
            while len(self._blocks) > _MEMORY:
                self._blocks.popitem(last=False)

    def failure(self, shard: RemoteShard) -> Unreadable | None:
        since, error = self._failed.get(shard, (0.0, None))
        return error if error is not None and time.monotonic() - since < _REST_SECONDS else None

    def fail(self, shard: RemoteShard, error: Unreadable) -> None:
        self._failed[shard] = (time.monotonic(), error)


_memory = _Memory()


def _blocks(places: Sequence[_Place]) -> dict[_Place, bytes | Unreadable]:
    """Blocks from memory, from the cache, or else from their stores; an error in place of a lost block."""
    blocks: dict[_Place, bytes | Unreadable] = {}
    missing: list[_Place] = []
    for place in places:
        data = _memory.get(place) or _cached(place)
        if data is None:
            missing.append(place)
        else:
            blocks[place] = data
    with closing(in_threads(_request, _joined(missing))) as answers:
        for answer in answers:
            blocks |= answer
    _memory.put({place: data for place, data in blocks.items() if isinstance(data, bytes)})
    return blocks


def _cached(place: _Place) -> bytes | None:
    blocks = place[0].cache.blocks
    return None if blocks is None else blocks.get(_block_key(place))


def _block_key(place: _Place) -> bytes:
    shard, number = place
    return key_of(shard.url, shard.entry, number)


def _joined(places: list[_Place]) -> list[list[_Place]]:
    """Blocks in groups of neighbours: each group is one request."""
    groups: list[list[_Place]] = []
    for shard, number in sorted(places, key=lambda place: (place[0].url, place[1])):
        last = groups[-1][-1] if groups else None
        if last == (shard, number - 1) and len(groups[-1]) < _REQUEST:
            groups[-1].append((shard, number))
        else:
            groups.append([(shard, number)])
    return groups


def _request(places: list[_Place]) -> dict[_Place, bytes | Unreadable]:
    """Neighbouring blocks in one request."""
    shard, first = places[0]
    if (failure := _memory.failure(shard)) is not None:
        return dict.fromkeys(places, failure)
    start, stop = first * BLOCK, min((places[-1][1] + 1) * BLOCK, shard.size)
    try:
        data = open_store(split(shard.url)[0], READING).get(shard.entry, start, stop)
    except Unreadable as error:
        _memory.fail(shard, error)
        return dict.fromkeys(places, error)
    parts = {
        place: data[at : at + BLOCK] for place, at in zip(places, range(0, len(data), BLOCK), strict=True)
    }
    blocks = shard.cache.blocks
    if blocks is not None:
        for place, part in parts.items():
            blocks.put(_block_key(place), part)
    return dict(parts)


def _good(block: bytes | Unreadable) -> bytes:
    if isinstance(block, Unreadable):
        raise block
    return block
