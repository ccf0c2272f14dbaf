"""Per-image columns on disk, memory-mapped: a hundred million rows cost a process no memory of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

HASH_BYTES = 16
BATCH_ROWS = 16_384

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.int32()),  # -1 unknown
        ("truth", pa.int32()),  # the pool's hidden truth, -1 unknown
        ("content_hash", pa.binary(HASH_BYTES)),
        ("height", pa.int32()),  # of the original, pixels
        ("width", pa.int32()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("stored", pa.int64()),  # row of the resident array, -1 when streamed
    ]
)


class Index:
    """One set's rows in an Arrow file of `SCHEMA` (or another of fixed-width columns and strings).

    Pickles as its path; a worker maps the file again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getstate__(self) -> dict[str, Any]:
        """The path alone."""
        return {"path": self.path}

    @cached_property
    def batches(self) -> list[Any]:
        """The record batches, still on disk."""
        reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0] + [batch.num_rows for batch in self.batches])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def full(self, name: str) -> NDArray[Any]:
        """A fixed-width column (N,), or (N, 16) for the hash, copied into memory."""
        return np.concatenate([_empty(name), *(view for _, view in self.parts(name))])

    def parts(self, name: str) -> Iterator[tuple[int, NDArray[Any]]]:
        """A fixed-width column piece by piece, where it lies on disk, each with the row it starts at."""
        for start, batch in zip(self._starts.tolist(), self.batches, strict=False):
            yield start, _view(batch, name)

    def take(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """A fixed-width column at `rows`, reading nothing else."""
        out = np.empty((len(rows), *_empty(name).shape[1:]), _empty(name).dtype)
        for batch, mine, local in self._places(rows):
            out[mine] = _view(batch, name)[local]
        return out

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The ids at `rows`, reading nothing else."""
        out = np.empty(len(rows), object)
        for batch, mine, local in self._places(rows):
            out[mine] = batch.column("id").take(pa.array(local)).to_numpy(zero_copy_only=False)
        ids: list[str] = out.tolist()
        return ids

    def _places(self, rows: NDArray[np.int64]) -> Iterator[tuple[Any, NDArray[np.int64], NDArray[np.int64]]]:
        """Each record batch that holds some of `rows`: the batch, which of `rows`, and where in the batch."""
        where = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(where, kind="stable")
        numbers, first = np.unique(where[order], return_index=True)
        for number, mine in zip(
            numbers, np.split(order, first[1:]), strict=False
        ):  # without rows, one empty split
            yield self.batches[number], mine, rows[mine] - self._starts[number]


@contextmanager
def writer(path: Path, schema: Any) -> Iterator[Callable[[Any], None]]:
    """Append record batches to a new Arrow file; small ones are gathered, so that it has few of them."""
    held: list[Any] = []
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as file:

        def flush() -> None:
            for batch in pa.Table.from_batches(held, schema).combine_chunks().to_batches():
                file.write_batch(batch)
            held.clear()

        def append(batch: Any) -> None:
            held.append(batch)
            if sum(part.num_rows for part in held) >= BATCH_ROWS:
                flush()

        yield append
        flush()


def record_batch(columns: dict[str, Any]) -> Any:
    """A record batch of `SCHEMA` from Arrow or numpy columns, the hash as (n, 16) uint8."""
    return pa.RecordBatch.from_arrays(
        [_arrow(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA
    )


def _arrow(values: Any, kind: Any) -> Any:
    if isinstance(values, pa.Array):
        return values
    if pa.types.is_fixed_size_binary(kind):
        hashes = np.ascontiguousarray(values, dtype=np.uint8)
        return pa.FixedSizeBinaryArray.from_buffers(kind, len(hashes), [None, pa.py_buffer(hashes)])
    return pa.array(values, type=kind)


def _view(batch: Any, name: str) -> NDArray[Any]:
    column = batch.column(name)
    if pa.types.is_fixed_size_binary(column.type):
        flat = np.frombuffer(
            column.buffers()[1], np.uint8, len(column) * HASH_BYTES, column.offset * HASH_BYTES
        )
        return flat.reshape(-1, HASH_BYTES)
    view: NDArray[Any] = column.to_numpy(zero_copy_only=True)
    return view


def _empty(name: str) -> NDArray[Any]:
    kind = SCHEMA.field(name).type
    if pa.types.is_fixed_size_binary(kind):
        return np.empty((0, HASH_BYTES), np.uint8)
    return np.empty(0, kind.to_pandas_dtype())
