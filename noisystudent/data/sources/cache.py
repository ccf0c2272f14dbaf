"""The local cache of remote shards: their listings, and one file of blocks that all processes share."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from noisystudent.data.sources.base import Row
from noisystudent.errors import InputError, RunError

BLOCK = 2**17
"""Bytes of a block, the unit of requests and of the cache: two images of 50 kB share most of their blocks."""
_BLOCKS = "noisystudent.blocks"  # a file of this name is replaced; no user has one
_HEADER = struct.Struct("<16sQQ")  # key, bytes, xxh3_64 of the data
_WAYS = 8  # slots in which a block may lie
_ROWS = 2**14  # of a listing in memory at once
# Bytes and not text: a name in a tar file need not be UTF-8.
_SCHEMA = pa.schema(
    [("name", pa.binary()), ("label", pa.binary()), ("offset", pa.int64()), ("size", pa.int64())]
)


@dataclass(frozen=True)
class Cache:
    """Where remote shards are cached.

    Attributes:
        folder: listings of shards, and the file of blocks.
        size: largest size in bytes of the file of blocks. 0: blocks are not kept.
    """

    folder: Path
    size: int

    @property
    def blocks(self) -> BlockFile | None:
        """The file of blocks; None if it would have no slot."""
        return _opened(self) if self.size >= _WAYS * (BLOCK + _HEADER.size) else None

    def rows(self, key: bytes) -> Iterator[Row] | None:
        """The listing of a shard; None if it is not there, or damaged."""
        try:
            file = pa.ipc.open_file(pa.memory_map(str(self._listing(key))))
        except (FileNotFoundError, pa.ArrowInvalid, ValueError):  # ValueError: the file is empty
            return None
        return _rows(file)

    def keep_rows(self, key: bytes, rows: list[Row]) -> None:
        """Keep the listing of a shard.

        Raises:
            RunError: the disk is full.
        """
        path = self._listing(key)
        lines = [(os.fsencode(one.name), one.label and os.fsencode(one.label), *one[2:]) for one in rows]
        columns = list(zip(*lines, strict=True)) or [()] * len(_SCHEMA)
        arrays = [pa.array(*pair) for pair in zip(columns, _SCHEMA.types, strict=True)]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # a name of its own: two runs may list the same shard at once
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                with pa.ipc.new_file(file, _SCHEMA) as sink:
                    sink.write_table(pa.table(arrays, schema=_SCHEMA), max_chunksize=_ROWS)
                os.fsync(file.fileno())
            os.replace(file.name, path)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror or error}") from error

    def _listing(self, key: bytes) -> Path:
        return self.folder / "listings" / f"{key.hex()}.arrow"


def _rows(file: Any) -> Iterator[Row]:
    for number in range(file.num_record_batches):
        names, labels, *numbers = (column.to_pylist() for column in file.get_batch(number).columns)
        yield from map(Row, map(os.fsdecode, names), (one and os.fsdecode(one) for one in labels), *numbers)


def cache_folder() -> Path:
    """NOISYSTUDENT_CACHE, or `noisystudent` in XDG_CACHE_HOME or `~/.cache`."""
    if given := os.environ.get("NOISYSTUDENT_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "noisystudent"


class BlockFile:
    """A set-associative cache: the key of a block chooses 8 slots, and the block lies in one of them.

    The file never grows beyond `size`, nothing has to be removed, and it takes space only where it was
    written. Processes share it without locks: the header of a slot holds the checksum of its data, so a block
    that another process is replacing, or that a crash has torn, is not there.

    Raises:
        InputError: the file cannot be made.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._sets = size // (BLOCK + _HEADER.size) // _WAYS
        self._data = self._sets * _WAYS * _HEADER.size  # place of the first slot; the headers come first
        length = self._data + self._sets * _WAYS * BLOCK
        try:
            self._descriptor = _open_shared(path, length)
        except OSError as error:
            raise InputError(
                f"{path}: the cache of remote shards cannot be written ({error.strerror}); set"
                " NOISYSTUDENT_CACHE to another folder, or data.cache_gb to 0"
            ) from error

    def get(self, key: bytes) -> bytes | None:
        """The block of a key (16 bytes); None if it is not there."""
        first, headers = self._headers(key)
        for way, (there, size, checksum) in enumerate(headers):
            if there == key and 0 < size <= BLOCK:
                data = os.pread(self._descriptor, size, self._place(first + way))
                if xxhash.xxh3_64_intdigest(data) == checksum:
                    return data
        return None

    def put(self, key: bytes, data: bytes) -> None:
        """Keep a block, in place of another one if its slots are full.

        Raises:
            RunError: the disk is full.
        """
        first, headers = self._headers(key)
        keys = [there if size else None for there, size, _ in headers]
        # The block to lose is as good as drawn. In shuffled order no block is needed sooner than another.
        way = next((keys.index(one) for one in (key, None) if one in keys), key[-1] % _WAYS)
        header = _HEADER.pack(key, len(data), xxhash.xxh3_64_intdigest(data))
        try:
            os.pwrite(self._descriptor, data, self._place(first + way))
            os.pwrite(self._descriptor, header, (first + way) * _HEADER.size)
        except OSError as error:
            raise RunError(
                f"cannot write {self._path}: {error.strerror}; free some space, or choose a smaller"
                " data.cache_gb or another NOISYSTUDENT_CACHE"
            ) from error

    def _headers(self, key: bytes) -> tuple[int, list[tuple[bytes, int, int]]]:
        """First slot of the set of a key, and the headers of its slots."""
        first = int.from_bytes(key[:8], "little") % self._sets * _WAYS
        data = os.pread(self._descriptor, _WAYS * _HEADER.size, first * _HEADER.size)
        return first, list(_HEADER.iter_unpack(data))

    def _place(self, slot: int) -> int:
        return self._data + slot * BLOCK

    def __del__(self) -> None:
        with suppress(AttributeError):  # it was not opened
            os.close(self._descriptor)


def key_of(*parts: object) -> bytes:
    """16 bytes for some values."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


def _open_shared(path: Path, length: int) -> int:
    """Open the file of `length` bytes at `path`, made of zeros if it is not there, and return its descriptor.

    Threads and processes that open it at once have the same file. One of another length is removed, because
    the places in it depend on its length; who has it open keeps it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        # Not a rename of a new file: of two at once, one would replace what the other has opened already.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size == 0:  # new; the same call by another process takes nothing away
                os.ftruncate(descriptor, length)
            if os.fstat(descriptor).st_size == length:
                return os.dup(descriptor)  # this one is closed below
            with suppress(OSError):  # some shared disks have no locks; then two may make a new file at once
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # for those that have the same old file
            with suppress(FileNotFoundError):  # one of them has removed it
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    path.unlink()
        finally:
            os.close(descriptor)  # also releases the lock


@lru_cache(maxsize=4)
def _opened(cache: Cache) -> BlockFile:
    return BlockFile(cache.folder / _BLOCKS, cache.size)
