"""DuckDB over Parquet, out of core: how a selection is computed, written and read back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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

COLUMNS = "row, content_hash, label, confidence, repeats, reason"
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("content_hash", pa.binary(16)),
        ("label", pa.int32()),
        ("confidence", pa.float32()),
        ("repeats", pa.int32()),
        ("reason", pa.string()),
    ]
)
ROW_GROUP = 1 << 20


@contextmanager
def database(beside: Path, memory_limit: str, threads: int | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory DuckDB that spills into a folder next to `beside`, for the length of the block.

    Raises:
        RunError: a query failed: memory or disk is full, or a file is damaged.
    """
    spill = beside.with_name(f".{beside.name}.spill")
    # insertion order costs memory, and every result here is sorted
    settings: dict[str, Any] = {"memory_limit": memory_limit, "preserve_insertion_order": False}
    settings["temp_directory"] = str(spill)
    if threads is not None:
        settings["threads"] = threads
    beside.parent.mkdir(parents=True, exist_ok=True)
    try:
        with duckdb.connect(config=settings) as connection:
            connection.execute("SET enable_progress_bar = false")
            yield connection
    except duckdb.Error as error:
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

    Raises:
        RunError: there are none.
    """
    paths = sorted(labels.path.glob("*.parquet"))
    if not paths:
        raise RunError(f"{labels.path} holds no pseudo-labels; label the pool first")
    columns = "row, content_hash, label, confidence"
    connection.execute(f"CREATE TEMP VIEW labels AS SELECT {columns} FROM {parquet(paths)}")


def write(connection: duckdb.DuckDBPyConnection, decided: str, out: Path) -> None:
    """Write the rows of the relation `decided` (columns of `records.Selection`) atomically.

    Kept rows come first, by label and falling confidence, then all others by row. The bytes depend on the
    rows alone, neither on threads nor on the files the rows came from.
    """
    rows = f"SELECT {COLUMNS} FROM {decided} WHERE repeats"
    kept = f"{rows} > 0 ORDER BY label, confidence DESC, content_hash, row"
    rest = f"{rows} = 0 ORDER BY row"
    repetitive = ["label", "repeats", "reason"]
    with (
        atomic(out) as partial,
        pq.ParquetWriter(partial, SCHEMA, compression="zstd", use_dictionary=repetitive) as writer,
    ):
        for query in (kept, rest):
            for group in _row_groups(pa.RecordBatchReader.from_stream(connection.sql(query))):
                writer.write_table(group.cast(SCHEMA), row_group_size=ROW_GROUP)


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
        rows (n,) int64 of the pool and repeats (n,) int32, at least 1, by label and content hash: an order
        that renaming or moving files does not change.
    """
    source = parquet([selection.path])
    with database(selection.path, "2GB", None) as connection:
        result = connection.execute(
            f"SELECT row, repeats FROM {source} WHERE repeats > 0 ORDER BY label, content_hash, row"
        ).fetchnumpy()
    return np.asarray(result["row"], dtype=np.int64), np.asarray(result["repeats"], dtype=np.int32)


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
            f"""SELECT label, count(*), count(*) FILTER (reason <> 'below_threshold'),
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
