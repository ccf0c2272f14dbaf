"""A source of encoded images in Parquet files, as Hugging Face datasets store them."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from noisystudent.data.sources.base import (
    LOST,
    Item,
    Place,
    Row,
    Unreadable,
    class_name,
    digest,
    missing_label,
)
from noisystudent.data.sources.shard import Shard, ahead, file_name, listings, source_name
from noisystudent.errors import InputError, NoisyStudentError, first_line

_OPEN_FILES = 64  # open at once; the operating system limits the open files of a process
_GROUPS_KEPT = 2  # row groups in memory at once
_CHUNK = 64  # images of a row group in one array, which then has less than 2 GiB
_SMALL_GROUP = 32  # rows; streaming single images from larger groups is slow, and the user gets a note


class ParquetSource:
    """Encoded images in one or several Parquet files.

    The images are in a column `image` that is a struct with the field `bytes`, or in a binary column `image`
    or `bytes`. The label is the column `label`, translated to names if the file has ClassLabel metadata. The
    id is `<file>/<row>`, or `<row>` if there is only one file. To read one image, its whole row group is
    decoded; streaming in shuffled order is therefore faster with small row groups, or with tar shards.

    Raises:
        InputError: a file is not Parquet or has no image column, or there are no rows.
    """

    decoded = False

    def __init__(self, shards: list[Shard], labeled: bool) -> None:
        self.name = source_name(shards, "Parquet files")
        self._shards = shards
        self._labeled = labeled
        self._set_caches()
        if len(self) == 0:
            raise InputError(f"{self.name}: no images in it")

    def _set_caches(self) -> None:
        # Caches of this object and not of the class: they end with it, and pickling can leave them out.
        self._open = lru_cache(maxsize=_OPEN_FILES)(_File)
        self._group = lru_cache(maxsize=_GROUPS_KEPT)(self._read_group)

    def __getstate__(self) -> dict[str, Any]:
        """State without open files; a worker opens the files itself."""
        return {key: self.__dict__[key] for key in ("name", "_shards", "_labeled")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_caches()

    @property
    def shards(self) -> int:
        """Number of Parquet files."""
        return len(self._shards)

    def __len__(self) -> int:
        """Number of rows, from the footers of the files, and of files that cannot be read."""
        return sum(1 if file is None else file.starts[-1] for file in self._files())

    def items(self) -> Iterator[Item]:
        """Items in the order of the rows, file by file. Only the label column is read."""
        for shard, rows in listings(self._shards, self._rows):
            file = self._shards[shard]
            prefix = "" if len(self._shards) == 1 else f"{shard:05d}-{file_name(file).stem}/"
            for row in rows:
                item = Item(prefix + row.name, row.label, shard, row.offset, row.size)
                if row.label is None and row.size != LOST and self._labeled:
                    raise missing_label(item.id, file.name)
                yield item

    def read(self, shard: int, offset: int, size: int, _name: str, /) -> bytes:
        """Encoded bytes of one image; empty if the value is null."""
        starts = self._open(self._shards[shard]).starts
        if size == LOST:
            self._shards[shard].open().read(0, 1)  # raises the reason if its store does not give it
            raise OSError("the file could not be listed; all its images are lost")
        group = bisect_right(starts, offset) - 1
        try:
            data: bytes | None = self._group(shard, group)[offset - starts[group]].as_py()
        except NoisyStudentError:
            raise
        except Exception as error:  # a damaged page counts as bad images, as a damaged file does
            raise OSError(first_line(error)) from error
        return data or b""

    def prefetch(self, places: Sequence[Place], /) -> None:
        """See `base.prefetch`."""
        ahead(self._ranges(places))

    def _ranges(self, places: Sequence[Place]) -> Iterator[tuple[Shard, int, int]]:
        """(shard, offset, size) of the images of the row groups of some places."""
        for number, row, size, _ in places:
            shard = self._shards[number]
            with suppress(Unreadable):  # `read` raises it again
                if size != LOST and not shard.on_disk:
                    yield shard, *self._open(shard).range_of(row)

    def fingerprint(self) -> str:
        """Hash of (name, bytes, mtime or etag) of every file."""
        return digest(shard.signature() for shard in self._shards)

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """A note about slow reading, if images are streamed from large row groups."""
        rows = max(0 if file is None else file.largest_group for file in self._files())
        if not streamed or rows <= _SMALL_GROUP:
            return ()
        return (
            f"{self.name}: training streams single rows in shuffled order, and each reads a row group of "
            f"up to {rows}; data.plane resident, tar shards or row groups of {_SMALL_GROUP} are faster",
        )

    def _files(self) -> Iterator[_File | None]:
        """The open files; None in place of one that its store does not give."""
        for start in range(0, len(self._shards), _OPEN_FILES):
            shards = self._shards[start : start + _OPEN_FILES]
            ahead((shard, shard.size - 1, 1) for shard in shards)  # the footers, all at once
            for shard in shards:
                try:
                    yield self._open(shard)
                except Unreadable:
                    yield None

    def _rows(self, shard: Shard) -> Iterator[Row]:
        """Rows of a file, named by their numbers."""
        for row, label in enumerate(self._open(shard).labels()):
            yield Row(f"{row:08d}", label, row, -1)

    def _read_group(self, shard: int, group: int) -> Any:
        return self._open(self._shards[shard]).images(group)


class _File:
    """One open Parquet file.

    Attributes:
        starts: first row of each row group, and the number of rows.
        largest_group: number of rows of the largest row group.
    """

    def __init__(self, shard: Shard) -> None:
        self._name = shard.name
        self.starts = [0]
        try:
            self._file = pq.ParquetFile(shard.arrow())
            metadata, schema = self._file.metadata, self._file.schema_arrow
            for group in range(metadata.num_row_groups):
                self.starts.append(self.starts[-1] + metadata.row_group(group).num_rows)
            size = shard.size
        except (Unreadable, NoisyStudentError):
            raise
        except Exception as error:  # Arrow raises many types of errors on broken bytes
            raise InputError(f"{self._name}: not a Parquet file ({first_line(error)})") from error
        rows = [b - a for a, b in pairwise(self.starts)]
        if min(rows, default=0) < 0 or sum(rows) > size:  # an image has more than a byte
            raise InputError(f"{self._name}: damaged; it cannot have {sum(rows):,} images in {size:,} bytes")
        self.largest_group = max(rows, default=0)
        self._column = _image_column(schema, self._name)
        self._names = _class_names(schema, self._name)
        self._has_labels = "label" in schema.names

    def range_of(self, row: int) -> tuple[int, int]:
        """(offset, size) in bytes of the images of the row group that has a row."""
        group = self._file.metadata.row_group(bisect_right(self.starts, row) - 1)
        columns = (group.column(number) for number in range(group.num_columns))
        column = next(one for one in columns if one.path_in_schema == self._column)
        return column.dictionary_page_offset or column.data_page_offset, column.total_compressed_size

    def images(self, group: int) -> Any:
        """Chunked Arrow array of the encoded images of one row group."""
        # In chunks: an array of bytes ends at 2 GiB, and Arrow reads no struct that needs two of them.
        batches = self._file.iter_batches(_CHUNK, row_groups=[group], columns=[self._column])
        columns = [batch.column(0) for batch in batches]
        return pa.chunked_array(
            column.field("bytes") if pa.types.is_struct(column.type) else column for column in columns
        )

    def labels(self) -> Iterator[str | None]:
        """Label of each row; None if unknown."""
        if not self._has_labels:
            yield from (None for _ in range(self.starts[-1]))
            return
        batches = self._file.iter_batches(columns=["label"])
        while (values := self._next_labels(batches)) is not None:
            yield from map(self._label, values)

    def _next_labels(self, batches: Iterator[Any]) -> list[Any] | None:
        """Values of the next batch of the label column; None at its end."""
        try:
            batch = next(batches, None)
            return None if batch is None else batch.column(0).to_pylist()
        except (Unreadable, NoisyStudentError):
            raise
        except Exception as error:  # as above
            raise InputError(f"{self._name}: column `label` cannot be read ({first_line(error)})") from error

    def _label(self, value: object) -> str | None:
        """Class name of a value of the label column; None if unknown."""
        # Hugging Face writes -1 for the hidden labels of a test set.
        name = class_name(value, self._name)
        if name is None or self._names is None or not isinstance(value, int):
            return name
        if value >= len(self._names):
            raise InputError(
                f"{self._name}: label {value}, but its metadata names {len(self._names)} classes"
            )
        return self._names[value]


def _image_column(schema: Any, path: str) -> str:
    """Path of the column with the encoded images, such as `image.bytes`.

    Raises:
        InputError: there is none, or two columns of one name.
    """
    for name in ("label", "image", "bytes"):
        if (count := schema.names.count(name)) > 1:
            raise InputError(f"{path}: {count} columns are named `{name}`; keep one of them")
    for name in ("image", "bytes"):
        if name in schema.names and (field := _bytes_field(schema.field(name))) is not None:
            return field
    columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
    raise InputError(f"{path}: no column `image` or `bytes` with image bytes (columns: {columns})")


def _bytes_field(column: Any) -> str | None:
    """Path of the bytes in a column: the column itself, or its field `bytes`; None if it has none."""
    kind, name = column.type, column.name
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")  # -1 also if two fields have this name
        if place < 0:
            return None
        kind, name = kind.field(place).type, f"{name}.bytes"
    return name if kind in (pa.binary(), pa.large_binary(), pa.binary_view()) else None


def _class_names(schema: Any, path: str) -> list[str] | None:
    """Class names of a ClassLabel feature in Hugging Face's metadata, None if there are none.

    Raises:
        InputError: two classes have the same name.
    """
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        feature = json.loads(text)["info"]["features"]["label"]
        names = feature.get("names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # other software wrote the metadata; labels stay numbers
    if not isinstance(names, list):
        return None
    names = [str(name) for name in names]
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{path}: its metadata names {count} classes {name!r}; give each its own name")
    return names
