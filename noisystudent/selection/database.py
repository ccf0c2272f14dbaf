"""Read pseudo-labels with DuckDB, which needs little memory, and write and read selections as Parquet."""

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

from noisystudent.errors import InputError, RunError, first_line
from noisystudent.records import PseudoLabels, Selection
from noisystudent.run.files import atomic, remove
from noisystudent.run.rundir import LabelsDir
from noisystudent.selection.decisions import REASONS, Decide, Images, halves

_LABELS = pa.schema(
    [
        ("row", pa.int64()),
        ("content_hash", pa.binary(16)),
        ("label", pa.int32()),
        ("confidence", pa.float32()),
        ("junk", pa.bool_()),
    ]
)
_REASON = pa.field("reason", pa.dictionary(pa.uint8(), pa.string()))
SCHEMA = pa.schema([*_LABELS, ("repeats", pa.int32()), _REASON])
# Hashes and confidences hardly repeat. Compressing them, or their statistics, costs time and saves nothing.
_ENCODING: dict[str, Any] = {
    "compression": dict.fromkeys(SCHEMA.names, "zstd") | {"content_hash": "none", "confidence": "none"},
    "use_dictionary": ["label", "repeats", "reason"],
    "column_encoding": {"row": "DELTA_BINARY_PACKED"},
    "write_statistics": ["row", "label", "repeats"],
}
ROW_GROUP = 1 << 17  # rows; so few take little memory while they are decided and written


@contextmanager
def database(beside: Path, memory_limit: str, threads: int | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an in-memory DuckDB for the length of the block.

    Args:
        beside: file that is being computed. Data that exceeds the memory goes to a folder next to it.
        memory_limit: of DuckDB, for example '2GB'.
        threads: of DuckDB. None: one for each core.

    Raises:
        RunError: a query failed, because memory or disk is full or a file is damaged.
    """
    spill = beside.with_name(f".{beside.name}.spill")
    settings: dict[str, Any] = {"memory_limit": memory_limit, "temp_directory": str(spill)}
    if threads is not None:
        settings["threads"] = threads
    beside.parent.mkdir(parents=True, exist_ok=True)
    try:
        with duckdb.connect(config=settings) as connection:
            # In a notebook without ipywidgets, DuckDB has no bar and refuses to set this option at all.
            if connection.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(True,)]:
                connection.execute("SET enable_progress_bar = false")
            connection.execute(f"CREATE TYPE why AS ENUM {REASONS}")  # one byte per row instead of a string
            yield connection
    except (duckdb.Error, pa.ArrowException) as error:
        raise RunError(f"cannot compute {beside}: {first_line(error)}") from error
    finally:
        remove(spill)


def parquet(paths: Iterable[Path]) -> str:
    """SQL table function that reads exactly these files, whatever characters their names contain."""
    return f"read_parquet([{', '.join(map(_literal, paths))}], hive_partitioning = false)"


def _literal(path: Path) -> str:
    """A path as an SQL string literal, with the wildcards of DuckDB escaped."""
    return "'" + re.sub(r"([*?\[])", r"[\1]", str(path)).replace("'", "''") + "'"


def open_labels(
    connection: duckdb.DuckDBPyConnection,
    labels: PseudoLabels,
    *,
    agreement: bool = False,
    junk_limit: float | None = None,
) -> None:
    """Create the view `labels(row, content_hash, label, confidence, junk)` of all Parquet files in a folder.

    `junk` is true for an energy below `junk_limit`. With `agreement`, the view has that column, too. Also
    create the view `candidates`, the labels that a rule may choose from. It has all of them until `restrict`
    is called.

    Raises:
        InputError: `agreement` is set, and a file has no such column.
        RunError: there are no files, or the labels are outside 0 to K-1.
    """
    paths = LabelsDir(labels.path).parts()
    if not paths:
        raise RunError(f"{labels.path} holds no pseudo-labels; label the pool first")
    if agreement and not all("agreement" in pq.read_schema(path).names for path in paths):
        raise InputError(
            f"{labels.path} has no agreement of teachers, because one teacher made the labels, or an older"
            " version of this program; set selection.agreement to 0, or label the pool again"
        )
    # The limit is one of the energies, which are exact in a DOUBLE. NaN is below nothing, but the statistics
    # of Parquet leave it out, and DuckDB takes `energy < limit` and `NOT isnan(energy)` as true by them.
    junk = "false"
    if junk_limit is not None:
        junk = f"coalesce(nullif(energy, 'nan'::FLOAT)::DOUBLE < {junk_limit:.17e}, false)"
    columns = ", ".join(
        f"{junk} AS junk" if name == "junk" else name for name in _labels_schema(agreement).names
    )
    connection.execute(f"CREATE TEMP VIEW labels AS SELECT {columns} FROM {parquet(paths)}")
    restrict(connection, "true")
    ((lowest, highest),) = connection.execute("SELECT min(label), max(label) FROM labels").fetchall()
    if lowest is not None and not 0 <= lowest <= highest < labels.num_classes:
        raise RunError(
            f"{labels.path} has labels from {lowest} to {highest}, but they must be from 0 to"
            f" {labels.num_classes - 1}; label the pool again"
        )


def restrict(connection: duckdb.DuckDBPyConnection, condition: str) -> None:
    """Define `candidates` as the labels that satisfy an SQL condition."""
    connection.execute(f"CREATE OR REPLACE TEMP VIEW candidates AS SELECT * FROM labels WHERE {condition}")


def _labels_schema(agreement: bool) -> pa.Schema:
    """Columns of the view `labels`."""
    return _LABELS.append(pa.field("agreement", pa.float32())) if agreement else _LABELS


def write(
    connection: duckdb.DuckDBPyConnection,
    relation: str,
    out: Path,
    decide: Decide | None = None,
    *,
    agreement: bool = False,
) -> None:
    """Write a selection atomically, ordered by pool row.

    The bytes depend on the rows only, not on the number of threads or on the files that the rows come from.
    Label files are normally in the order of rows, so the rows are written as they are read. Only if a row is
    out of order is everything sorted and written again.

    Args:
        connection: connection from `database`.
        relation: table or view with the columns of `labels`, and with `repeats` and `reason` if `decide` is
            None.
        out: Parquet file to write.
        decide: computes repeats and reason of each image. None: they are columns of `relation`.
        agreement: `decide` reads the column `agreement`.
    """
    schema = SCHEMA if decide is None else _labels_schema(agreement)
    query = f"SELECT {', '.join(schema.names)} FROM {relation}"
    with atomic(out) as partial:
        # Sorting needs memory for every row, so it is tried without first.
        if not _written(connection.sql(query), decide, partial):
            _written(connection.sql(f"{query} ORDER BY row"), decide, partial)


def _written(rows: duckdb.DuckDBPyRelation, decide: Decide | None, path: Path) -> bool:
    """Write the rows in the order in which they are read; returns False at the first row out of order."""
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
    """The same tables; while the caller writes one, a thread computes the next."""
    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(next, tables, None)
        while (table := pending.result()) is not None:
            pending = thread.submit(next, tables, None)
            yield table


def _decided(group: pa.Table, decide: Decide | None) -> pa.Table:
    """Add the columns `repeats` and `reason`, if `decide` is given, and return a table of `SCHEMA`."""
    if decide is None:
        return group.cast(SCHEMA)
    group = group.cast(_labels_schema("agreement" in group.column_names))
    row, content_hash, *others = (column.combine_chunks() for column in group.columns)
    arrays = (other.to_numpy(zero_copy_only=False) for other in others)  # bits become bytes
    decision = decide(Images(row.to_numpy(), _halves(content_hash), *arrays))
    reason = pa.DictionaryArray.from_arrays(pa.array(decision.reason), pa.array(REASONS))
    group = group.select(_LABELS.names)
    return group.append_column("repeats", pa.array(decision.repeats)).append_column(_REASON, reason)


def _halves(hashes: pa.Array) -> NDArray[np.uint64]:
    """(n, 2) uint64 halves of n content hashes."""
    # An Arrow slice shares the buffer of the whole column and begins at its offset.
    return halves(hashes.buffers()[1])[hashes.offset : hashes.offset + len(hashes)]


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in tables of ROW_GROUP rows.

    The sizes of DuckDB's batches vary with its version and threads, and the bytes of the file must not.
    """
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


def marks(selection: Path) -> str:
    """SQL expression of the column `junk` of a selection; files of older versions have none."""
    return "junk" if "junk" in pq.read_schema(selection).names else "false"


def selected_rows(
    selection: Selection, window: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Read the pool images that a student is trained on.

    Args:
        selection: the selection.
        window: see `Sampler`. If it is smaller than an epoch, the images are ordered by pool row, so that
            neighbours in a shard stay neighbours. Otherwise they are ordered by content hash, so that the
            order is the same after files were renamed or moved.

    Returns:
        Pool rows (n,) int64 and repeats (n,) int32, at least 1.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        with pq.ParquetFile(selection.path) as file:
            count = file.metadata.num_rows
            # Allocated for all rows: the kept ones are at most as many.
            keys, rows, repeats = (
                np.empty(count, np.uint64),
                np.empty(count, np.int64),
                np.empty(count, np.int32),
            )
            n = 0  # kept images so far
            for batch in file.iter_batches(ROW_GROUP, columns=["row", "content_hash", "repeats"]):
                counts = batch["repeats"].to_numpy()
                kept = np.flatnonzero(counts)
                here = slice(n, n + len(kept))
                rows[here], repeats[here] = batch["row"].to_numpy()[kept], counts[kept]
                keys[here] = _halves(batch["content_hash"])[kept, 0]
                n += len(kept)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{selection.path} cannot be read ({first_line(error)}); select again") from error
    windows = window is not None and window < int(repeats[:n].sum(dtype=np.int64))
    order = np.argsort((rows if windows else keys)[:n], kind="stable")
    return rows[:n][order], repeats[:n][order]
