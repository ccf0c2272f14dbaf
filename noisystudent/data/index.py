"""Columns of all images of a set in a memory-mapped file: 100 million rows take no memory of the process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from noisystudent.errors import RunError, first_line

HASH_BYTES = 16
BATCH_ROWS = 16_384  # rows per record batch of a file, about

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.int32()),  # -1 if unknown
        ("truth", pa.int32()),  # true class of a pool image, for evaluation only; -1 if unknown
        ("content_hash", pa.binary(HASH_BYTES)),
        ("height", pa.int32()),  # of the original image, in pixels
        ("width", pa.int32()),
        ("shard", pa.int32()),  # shard, offset, size: the place of the bytes, see `sources.Item`
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("stored", pa.int64()),  # row of the array of decoded pixels; -1 if the set is streamed
    ]
)


class Index:
    """Rows of one set in an Arrow file.

    The file has the columns of `SCHEMA`, or some of them. Pickling stores the path only, and each worker maps
    the file again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getstate__(self) -> dict[str, Any]:
        """State without the open file."""
        return {"path": self.path}

    @cached_property
    def batches(self) -> list[Any]:
        """Record batches of the file; their columns stay on disk."""
        reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """(batches + 1,) first row of each record batch, and the number of rows."""
        return np.cumsum([0] + [batch.num_rows for batch in self.batches])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def full(self, name: str) -> NDArray[Any]:
        """Copy of a whole fixed-width column: (N,), or (N, 16) uint8 for the content hash."""
        return np.concatenate([_empty(name), *(view for _, view in self.parts(name))])

    def parts(self, name: str) -> Iterator[tuple[int, NDArray[Any]]]:
        """Pieces of a fixed-width column, each with its first row; the values stay on disk."""
        for start, batch in zip(self._starts.tolist(), self.batches, strict=False):
            yield start, _view(batch, name)

    def take(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Values (n,) of a fixed-width column at `rows`, or (n, 16) uint8; reads these values only."""
        out = np.empty((len(rows), *_empty(name).shape[1:]), _empty(name).dtype)
        for batch, at, local in self._places(rows):
            out[at] = _view(batch, name)[local]
        return out

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The ids at `rows`; reads these ids only."""
        out = np.empty(len(rows), object)
        for batch, at, local in self._places(rows):
            out[at] = batch.column("id").take(pa.array(local)).to_numpy(zero_copy_only=False)
        ids: list[str] = out.tolist()
        return ids

    def _places(self, rows: NDArray[np.int64]) -> Iterator[tuple[Any, NDArray[np.int64], NDArray[np.int64]]]:
        """Record batches that contain some of `rows`: (batch, positions in `rows`, rows of the batch)."""
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        # rows are grouped by batch, so that each batch is opened only once
        order = np.argsort(numbers, kind="stable")
        used, first = np.unique(numbers[order], return_index=True)
        # strict=False: for no rows, `used` is empty but np.split returns one empty array
        for number, at in zip(used, np.split(order, first[1:]), strict=False):
            yield self.batches[number], at, rows[at] - self._starts[number]


@contextmanager
def writer(path: Path, schema: Any) -> Iterator[Callable[[Any], None]]:
    """Yield a function that appends record batches to a new Arrow file.

    Small batches are merged up to `BATCH_ROWS` rows: an index keeps an object for each batch of its file.

    Raises:
        RunError: the file cannot be written.
    """
    pending: list[Any] = []
    with _named(path):
        sink = pa.OSFile(str(path), "wb")
        file = pa.ipc.new_file(sink, schema)

    def flush() -> None:
        with _named(path):
            for batch in pa.Table.from_batches(pending, schema).combine_chunks().to_batches():
                file.write_batch(batch)
        pending.clear()

    def append(batch: Any) -> None:
        pending.append(batch)
        if sum(part.num_rows for part in pending) >= BATCH_ROWS:
            flush()

    try:
        yield append
        flush()
    finally:
        with _named(path):
            file.close()  # writes the places of all batches
            sink.close()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in the errors of Arrow within the block, which do not name it."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {first_line(error)}") from error


def record_batch(columns: dict[str, Any]) -> Any:
    """A record batch of `SCHEMA` from Arrow or numpy columns; a numpy content hash is (n, 16) uint8."""
    return pa.RecordBatch.from_arrays(
        [_arrow(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA
    )


def _arrow(values: Any, kind: Any) -> Any:
    """Arrow array of type `kind`, from an Arrow or a numpy array."""
    if isinstance(values, pa.Array):
        return values
    if pa.types.is_fixed_size_binary(kind):
        hashes = np.ascontiguousarray(values, dtype=np.uint8)
        return pa.FixedSizeBinaryArray.from_buffers(kind, len(hashes), [None, pa.py_buffer(hashes)])
    return pa.array(values, type=kind)


def _view(batch: Any, name: str) -> NDArray[Any]:
    """A fixed-width column of a record batch as a numpy array, without a copy."""
    column = batch.column(name)
    if pa.types.is_fixed_size_binary(column.type):
        # to_numpy() cannot convert this type without a copy
        flat = np.frombuffer(
            column.buffers()[1], np.uint8, len(column) * HASH_BYTES, column.offset * HASH_BYTES
        )
        return flat.reshape(-1, HASH_BYTES)
    view: NDArray[Any] = column.to_numpy(zero_copy_only=True)  # raises if it would have to copy
    return view


def _empty(name: str) -> NDArray[Any]:
    """An array of no rows with the type and the row shape of a column."""
    kind = SCHEMA.field(name).type
    if pa.types.is_fixed_size_binary(kind):
        return np.empty((0, HASH_BYTES), np.uint8)
    return np.empty(0, kind.to_pandas_dtype())


def content_hash(data: bytes | NDArray[np.uint8]) -> bytes:
    """16 bytes: blake2b of a file's bytes, or of an array's shape and pixels."""
    if isinstance(data, bytes):
        return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()
    state = hashlib.blake2b(repr(data.shape).encode(), digest_size=HASH_BYTES)
    state.update(np.ascontiguousarray(data).data)
    return state.digest()
