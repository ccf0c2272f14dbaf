"""DuckDB over Parquet, out of core: how a selection is computed, written and read back."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisystudent.errors import RunError
from noisystudent.records import PseudoLabels, Selection
from noisystudent.rundir import atomic, remove
from noisystudent.selection.decisions import REASONS, Decide, Images, halves

_SAID = pa.schema(
    [
        ("row", pa.int64()),
        ("content_hash", pa.binary(16)),
        ("label", pa.int32()),
        ("confidence", pa.float32()),
    ]
)
_ABOVE = tuple(reason for reason in REASONS if reason in ("kept", "over_quota", "below_top_fraction"))
_REASON = pa.field("reason", pa.dictionary(pa.uint8(), pa.string()))
SCHEMA = pa.schema([*_SAID, ("repeats", pa.int32()), _REASON])
# neither hashes nor confidences repeat: compressing and counting them costs time and saves nothing
_ENCODING: dict[str, Any] = {
    "compression": dict.fromkeys(SCHEMA.names, "zstd") | {"content_hash": "none", "confidence": "none"},
    "use_dictionary": ["label", "repeats", "reason"],
    "column_encoding": {"row": "DELTA_BINARY_PACKED"},
    "write_statistics": ["row", "label", "repeats"],
}
ROW_GROUP = 1 << 17  # small enough that the rows in hand take little memory


@contextmanager
def database(beside: Path, memory_limit: str, threads: int | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory DuckDB that spills into a folder next to `beside`, for the length of the block.

    Raises:
        RunError: a query failed: memory or disk is full, or a file is damaged.
    """
    spill = beside.with_name(f".{beside.name}.spill")
    settings: dict[str, Any] = {"memory_limit": memory_limit, "temp_directory": str(spill)}
    if threads is not None:
        settings["threads"] = threads
    beside.parent.mkdir(parents=True, exist_ok=True)
    try:
        with duckdb.connect(config=settings) as connection:
            connection.execute("SET enable_progress_bar = false")
            connection.execute(f"CREATE TYPE why AS ENUM {REASONS}")  # a byte a row instead of a string
            yield connection
    except (duckdb.Error, pa.ArrowException) as error:
        raise RunError(f"cannot compute {beside}: {str(error).splitlines()[0]}") from error
    finally:
        remove(spill)


def parquet(paths: Iterable[Path]) -> str:
    """The SQL table function that reads these very files, whatever characters are in their names."""
    return f"read_parquet([{', '.join(map(_literal, paths))}], hive_partitioning = false)"


def _literal(path: Path) -> str:
    """A path as an SQL string in which no character acts as a wildcard."""
    return "'" + re.sub(r"([*?\[])", r"[\1]", str(path)).replace("'", "''") + "'"


def open_labels(connection: duckdb.DuckDBPyConnection, labels: PseudoLabels) -> None:
    """Make `labels(row, content_hash, label, confidence)` out of all Parquet files of the folder.

    `candidates` are those a rule may choose from: all, unless `restrict` says otherwise.

    Raises:
        RunError: there are none, or they are of other classes.
    """
    paths = sorted(labels.path.glob("*.parquet"))
    if not paths:
        raise RunError(f"{labels.path} holds no pseudo-labels; label the pool first")
    connection.execute(f"CREATE TEMP VIEW labels AS SELECT {', '.join(_SAID.names)} FROM {parquet(paths)}")
    restrict(connection, "true")
    ((lowest, highest),) = connection.execute("SELECT min(label), max(label) FROM labels").fetchall()
    if lowest is not None and not 0 <= lowest <= highest < labels.num_classes:
        raise RunError(
            f"{labels.path} holds classes {lowest} to {highest}, not 0 to {labels.num_classes - 1};"
            " label the pool again"
        )


def restrict(connection: duckdb.DuckDBPyConnection, condition: str) -> None:
    """Let `candidates` be the labels that meet an SQL condition."""
    connection.execute(f"CREATE OR REPLACE TEMP VIEW candidates AS SELECT * FROM labels WHERE {condition}")


def write(
    connection: duckdb.DuckDBPyConnection, relation: str, out: Path, decide: Decide | None = None
) -> None:
    """Write a selection of the images of `relation` atomically, by pool row.

    The bytes depend on the rows alone, neither on threads nor on the files the rows came from. Labels are
    written in the order of rows, so that they only pass through; what is found in another order is sorted.

    Args:
        connection: of a `database`.
        relation: with the columns of `labels`, and without `decide` also `repeats` and `reason`.
        out: the Parquet file.
        decide: what becomes of each image.
    """
    query = f"SELECT {', '.join((SCHEMA if decide is None else _SAID).names)} FROM {relation}"
    with atomic(out) as partial:
        if not _written(connection.sql(query), decide, partial):
            _written(connection.sql(f"{query} ORDER BY row"), decide, partial)


def _written(rows: duckdb.DuckDBPyRelation, decide: Decide | None, path: Path) -> bool:
    """Write the rows as they come; False as soon as one is out of order."""
    last = -1
    decided = (_decided(group, decide) for group in _row_groups(rows.arrow(ROW_GROUP)))
    with (
        pq.ParquetWriter(path, SCHEMA, store_schema=False, **_ENCODING) as writer,
        closing(_ahead(decided)) as groups,
    ):
        for group in groups:
            numbers = group.column("row").to_numpy()
            if numbers[0] <= last or (numbers[1:] <= numbers[:-1]).any():
                return False
            last = numbers[-1]
            writer.write_table(group, row_group_size=ROW_GROUP)
    return True


def _ahead(tables: Iterator[pa.Table]) -> Generator[pa.Table]:
    """The same tables; while the caller writes one, a thread makes the next."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, tables, None)
        while (table := coming.result()) is not None:
            coming = thread.submit(next, tables, None)
            yield table


def _decided(group: pa.Table, decide: Decide | None) -> pa.Table:
    if decide is None:
        return group.cast(SCHEMA)
    group = group.cast(_SAID)
    row, content_hash, label, confidence = (column.combine_chunks() for column in group.columns)
    found = decide(Images(row.to_numpy(), _halves(content_hash), label.to_numpy(), confidence.to_numpy()))
    reason = pa.DictionaryArray.from_arrays(pa.array(found.reason), pa.array(REASONS))
    return group.append_column("repeats", pa.array(found.repeats)).append_column(_REASON, reason)


def _halves(hashes: pa.Array) -> NDArray[np.uint64]:
    """(n, 2) of a column of n content hashes."""
    return halves(hashes.buffers()[1])[hashes.offset : hashes.offset + len(hashes)]


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in tables of ROW_GROUP rows: DuckDB's own batches vary with version and threads."""
    pending: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        while rows + len(batch) >= ROW_GROUP:
            cut = ROW_GROUP - rows
            yield pa.Table.from_batches([*pending, batch.slice(0, cut)])
            pending, rows, batch = [], 0, batch.slice(cut)
        pending.append(batch)
        rows += len(batch)
    if rows:
        yield pa.Table.from_batches(pending)


def chosen(selection: Selection) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """What a student trains on.

    Returns:
        rows (n,) int64 of the pool and repeats (n,) int32, at least 1, by content hash: an order that
        renaming or moving files does not change.
    """
    try:
        with pq.ParquetFile(selection.path) as file:
            count = file.metadata.num_rows
            keys, rows, repeats = (
                np.empty(count, np.uint64),
                np.empty(count, np.int64),
                np.empty(count, np.int32),
            )
            n = 0
            for batch in file.iter_batches(ROW_GROUP, columns=["row", "content_hash", "repeats"]):
                times = batch["repeats"].to_numpy()
                kept = np.flatnonzero(times)
                here = slice(n, n + len(kept))
                rows[here], repeats[here] = batch["row"].to_numpy()[kept], times[kept]
                keys[here] = _halves(batch["content_hash"])[kept, 0]
                n += len(kept)
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"{selection.path} cannot be read ({str(error).splitlines()[0]}); select again"
        ) from error
    order = np.argsort(keys[:n], kind="stable")
    return rows[:n][order], repeats[:n][order]


def summary(selection: Selection) -> dict[str, Any]:
    """What was kept, in numbers.

    Returns:
        images in the pool; above_threshold; kept, distinct images; total, those with their repeats;
        coverage, kept / images (0 without images); and classes, one each: label, predicted,
        above_threshold, kept, total and min_confidence of the kept (None without any).
    """
    names = ("label", "predicted", "above_threshold", "kept", "total", "min_confidence")
    with database(selection.path, "2GB", None) as connection:
        rows = connection.execute(
            f"""SELECT label, count(*), count(*) FILTER (reason IN {_ABOVE}),
                count(*) FILTER (repeats > 0), sum(repeats)::BIGINT, min(confidence) FILTER (repeats > 0)
            FROM {parquet([selection.path])} GROUP BY label"""
        ).fetchall()
    found = {row[0]: row[1:] for row in rows}
    classes = [
        dict(zip(names, (label, *found.get(label, (0, 0, 0, 0, None))), strict=True))
        for label in range(selection.num_classes)
    ]
    images, above, kept, total = (sum(row[name] for row in classes) for name in names[1:5])
    return {
        "images": images,
        "above_threshold": above,
        "kept": kept,
        "total": total,
        "coverage": kept / images if images else 0.0,
        "classes": classes,
    }
