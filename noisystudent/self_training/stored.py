"""Probabilities that were made elsewhere: Parquet files, brought into the order of an image set.

A file has a column `content_hash` (16 bytes: blake2b of the bytes of the image file) or `id` (the name of a
pool image, as in manifest.parquet), and either a column of numbers for each class, with its name, or a column
`probs` of lists. The folder of pseudo-labels of a run is such a folder. Of several rows of an image the first
counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisystudent.config import FirstTeacherConfig
from noisystudent.data.imageset import ImageSet
from noisystudent.errors import InputError, first_line
from noisystudent.inference.existing import class_order, probability_files
from noisystudent.inference.predict import label_classes
from noisystudent.run.files import atomic, new_array
from noisystudent.run.rundir import LABELS_FORMAT
from noisystudent.selection.database import database

_NAMED = 5  # columns in a message
_ROWS = 1 << 15  # that are read at once
_SUM = 0.01  # by which the probabilities of an image may miss a sum of 1: those in float16 do


@dataclass(frozen=True, slots=True)
class Stored:
    """Probabilities in Parquet files.

    Attributes:
        files: the files, all with the same columns.
        key: column that names the image.
        columns: columns of the probabilities: one for each class, or one of lists.
        order: (K,) place in the list for each class of the run.
        confident: True: the files are pseudo-labels of this package, in which the probabilities are rounded
            to float16, and the largest is also stored as `confidence` in float32.
    """

    files: tuple[Path, ...]
    key: Literal["content_hash", "id"]
    columns: tuple[str, ...]
    order: tuple[int, ...]
    confident: bool


def open_stored(teacher: FirstTeacherConfig, classes: Sequence[str]) -> Stored:
    """Check the columns of the files that `labels_from` names.

    Raises:
        InputError: a file is missing, is no Parquet file or has other columns, or the classes are others.
    """
    path = Path(str(teacher.labels_from))
    files = probability_files(path)
    schemas = [_schema(file) for file in files]
    first, names, kinds = schemas[0], schemas[0].names, _kinds(schemas[0])
    for file, schema in zip(files, schemas, strict=True):
        if _kinds(schema) != kinds:
            raise InputError(f"teachers: labels_from {file} has other columns than {files[0].name}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"teachers: labels_from {files[0]} has the column {twice[0]!r} twice; rename one")
    confident = (first.metadata or {}).get(b"format") == LABELS_FORMAT.encode()
    if "content_hash" not in names and "id" not in names:
        raise InputError(f"teachers: labels_from {files[0]} has neither a column content_hash nor id")
    key: Literal["content_hash", "id"] = "content_hash" if "content_hash" in names else "id"
    kind = dict(kinds)
    if key == "content_hash" and kind[key] != "hash":
        raise InputError(
            f"teachers: labels_from {files[0]} has content_hash as {first.field(key).type}; it must be"
            " binary, the 16 bytes of a hash"
        )
    if confident:
        _check_pseudo_labels(files, schemas)
    columns: tuple[str, ...] = ("probs",)
    if "probs" in names:
        if kind["probs"] != "list":
            raise InputError(
                f"teachers: labels_from {files[0]} has probs as {first.field('probs').type}; it must be a"
                " list of numbers for each image"
            )
        own = label_classes(path) if confident and path.is_dir() else ()
        order = class_order(own, teacher, classes)
    else:
        numbers = [name for name in names if kind[name] == "number"]
        if not numbers:
            raise InputError(
                f"teachers: labels_from {files[0]} has neither a list column probs nor a column of floating-"
                f"point numbers for each class; its columns are {', '.join(names[:_NAMED])}"
            )
        columns = tuple(numbers[place] for place in class_order(numbers, teacher, classes))
        order = tuple(range(len(classes)))
    return Stored(tuple(files), key, columns, order, confident)


def _kinds(schema: pa.Schema) -> list[tuple[str, str]]:
    """Name of each column, and hash, number or list (of numbers) if its type can hold one; or no word."""
    types, kinds = pa.types, []
    for field in schema:
        of, kind = field.type, ""
        if types.is_binary(of) or types.is_fixed_size_binary(of) or types.is_large_binary(of):
            kind = "hash"
        elif types.is_floating(of):
            kind = "number"
        elif (types.is_list(of) or types.is_large_list(of) or types.is_fixed_size_list(of)) and any(
            is_number(of.value_type) for is_number in (types.is_floating, types.is_integer, types.is_boolean)
        ):
            kind = "list"
        kinds.append((field.name, kind))
    return kinds


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"teachers: labels_from {file} is not a readable Parquet file ({first_line(error)})"
        ) from error


def _check_pseudo_labels(files: Sequence[Path], schemas: Sequence[pa.Schema]) -> None:
    """Refuse pseudo-labels in which not all probabilities are stored, or with another temperature."""
    for file, about in zip(files, schemas, strict=True):
        temperature = (about.metadata or {}).get(b"temperature", b"1.0").decode()
        if "probs" not in about.names:
            raise InputError(
                f"teachers: labels_from {file} has the top classes alone; give its model as model_from"
            )
        if float(temperature) != 1:
            raise InputError(
                f"teachers: labels_from {file} has probabilities at temperature {temperature}; give some at 1"
            )


def match(stored: Stored, images: ImageSet, out: Path) -> tuple[int, str] | None:
    """Write the probabilities of all images of a set to the .npy file `out`, float32 (N, K), atomically.

    Memory for one batch of rows is needed. Nothing is written if images have no row.

    Returns:
        Number of images without a row, and the name of the first. None: all have one.

    Raises:
        InputError: a row has no probabilities, or a file is damaged.
        RunError: the disk is full.
    """
    with database(out, "2GB", None) as connection:
        count = _join(connection, stored, images)
        if count < len(images):
            query = "SELECT min(row) FROM wanted WHERE row NOT IN (SELECT row FROM matched)"
            ((first,),) = connection.execute(query).fetchall()
            return len(images) - count, images.ids(np.array([first]))[0]
        with atomic(out) as partial:
            shape = (len(images), len(stored.order))
            probs = new_array(partial, np.float32, shape)
            for start, batch in _batches(stored, stored.columns + _confidence(stored)):
                places = connection.execute(
                    "SELECT place, row FROM matched WHERE place >= ? AND place < ?",
                    [start, start + len(batch)],
                ).fetchnumpy()
                if len(places["row"]):
                    values = _probs(stored, batch)[places["place"] - start]
                    _check_probs(values, stored, images, places["row"])
                    probs[places["row"]] = values
            probs.flush()
            del probs  # unmaps the file before it is renamed
    return None


def _confidence(stored: Stored) -> tuple[str, ...]:
    return ("label", "confidence") if stored.confident else ()


def _join(connection: duckdb.DuckDBPyConnection, stored: Stored, images: ImageSet) -> int:
    """Make the table matched(row, place): rows of the set, and places in all files; count its rows."""
    kind = "BLOB" if stored.key == "content_hash" else "VARCHAR"
    connection.execute(f"CREATE TEMP TABLE wanted(row BIGINT, key {kind})")
    connection.execute(f"CREATE TEMP TABLE offered(place BIGINT, key {kind})")
    hashes = images.content_hash
    for start in range(0, len(images), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(images)))
        keys = [row.tobytes() for row in hashes[rows]] if kind == "BLOB" else images.ids(rows)
        _insert(connection, "wanted", rows, pa.array(keys, pa.binary() if kind == "BLOB" else pa.string()))
    for start, batch in _batches(stored, (stored.key,)):
        key = batch.column(0).cast(pa.binary() if kind == "BLOB" else pa.string())
        _insert(connection, "offered", np.arange(start, start + len(batch)), key)
    connection.execute(
        """CREATE TEMP TABLE matched AS SELECT row, min(place) AS place
        FROM wanted JOIN offered USING (key) GROUP BY row ORDER BY place"""
    )
    return int(connection.execute("SELECT count(*) FROM matched").fetchall()[0][0])


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: NDArray[Any], keys: Any) -> None:
    connection.register("given", pa.table([pa.array(rows), keys], names=["row", "key"]))
    connection.execute(f"INSERT INTO {table} SELECT * FROM given")
    connection.unregister("given")


def _batches(stored: Stored, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (place of its first row, batch) of all files, with these columns in this order."""
    place = 0
    for file in stored.files:
        with pq.ParquetFile(file) as opened:
            batches = opened.iter_batches(_ROWS, columns=list(columns))
            while (batch := _next(batches, file)) is not None:
                yield place, batch.select(list(columns))
                place += len(batch)


def _next(batches: Iterator[pa.RecordBatch], file: Path) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (OSError, pa.ArrowException) as error:  # a file may be damaged behind its schema
        raise InputError(
            f"teachers: labels_from {file} is not a readable Parquet file ({first_line(error)})"
        ) from error


def _probs(stored: Stored, batch: pa.RecordBatch) -> NDArray[np.float32]:
    """(n, K) probabilities of the rows of a batch, in the order of the classes; NaN where there are none."""
    if stored.columns == ("probs",):
        lists, width = batch.column("probs"), len(stored.order)
        whole = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False) == width
        listed = np.full((len(batch), width), np.nan, np.float32)
        listed[whole] = (
            lists.filter(pa.array(whole)).flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        )
    else:
        columns = [batch.column(name).cast(pa.float32()) for name in stored.columns]
        listed = np.stack([column.to_numpy(zero_copy_only=False) for column in columns], axis=1)
    if stored.confident:
        label, confidence = batch.column("label").to_numpy(), batch.column("confidence").to_numpy()
        # Rounding may have made another one as large as the largest.
        listed = np.minimum(listed, np.nextafter(confidence, np.float32(0))[:, None])
        listed[np.arange(len(label)), label] = confidence
    return listed[:, list(stored.order)]


def _check_probs(
    values: NDArray[np.float32], stored: Stored, images: ImageSet, rows: NDArray[np.int64]
) -> None:
    sums = values.sum(axis=1, dtype=np.float64)
    # NaN is in no interval.
    right = (values >= 0).all(axis=1) & (np.abs(sums - 1) <= _SUM)
    if not right.all():
        at = int(right.argmin())
        name = images.ids(rows[at : at + 1])[0]
        place = stored.files[0] if len(stored.files) == 1 else stored.files[0].parent
        raise InputError(
            f"teachers: labels_from {place}: the row of {name} has no {values.shape[1]} probabilities, at"
            f" least 0 and with the sum 1 (it is {sums[at]:.3g})"
        )
