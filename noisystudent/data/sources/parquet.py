"""Images as bytes in Parquet files, as Hugging Face datasets store them."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from noisystudent.data.sources.base import Item, digest, file_signature, missing_label
from noisystudent.errors import InputError

_GROUPS_KEPT = 2
_SMALL_GROUP = 32


class ParquetSource:
    """Parquet files; id is `<file>/<row>`, label the column `label` (names from ClassLabel metadata).

    Images are a column `image` that is a struct with `bytes`, or a binary column `image` or `bytes`. A row
    group is decoded whole to reach one image, so shuffled streaming wants small row groups, or tar shards.

    Raises:
        InputError: not Parquet, no image column, no rows.
    """

    def __init__(self, paths: list[Path], labeled: bool) -> None:
        self.name = str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths)} Parquet files)"
        self._paths = paths
        self._labeled = labeled
        self._open = lru_cache(maxsize=64)(_Shard)
        self._group = lru_cache(maxsize=_GROUPS_KEPT)(self._read_group)
        if len(self) == 0:
            raise InputError(f"{self.name}: no images in it")

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: a worker opens its own."""
        return {key: self.__dict__[key] for key in ("name", "_paths", "_labeled")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = lru_cache(maxsize=64)(_Shard)
        self._group = lru_cache(maxsize=_GROUPS_KEPT)(self._read_group)

    @property
    def shards(self) -> int:
        """Number of Parquet files."""
        return len(self._paths)

    def __len__(self) -> int:
        """Number of rows, from the footers."""
        return sum(self._open(path).starts[-1] for path in self._paths)

    def items(self) -> Iterator[Item]:
        """Rows in order, file by file; only the label column is read."""
        for shard, path in enumerate(self._paths):
            file = self._open(path)
            prefix = "" if len(self._paths) == 1 else f"{shard:05d}-{path.stem}/"
            for row, label in enumerate(file.labels()):
                item = Item(f"{prefix}{row:08d}", label, shard, row, -1)
                if label is None and self._labeled:
                    raise missing_label(item.id, str(path))
                yield item

    def read(self, shard: int, offset: int, _size: int, _name: str, /) -> bytes:
        """The image bytes of one row; null is no bytes."""
        starts = self._open(self._paths[shard]).starts
        group = bisect_right(starts, offset) - 1
        try:
            data: bytes | None = self._group(shard, group)[offset - starts[group]].as_py()
        except pa.ArrowException as error:  # a broken page: this image cannot be read, like a broken file
            raise OSError(str(error).splitlines()[0]) from error
        return data or b""

    def fingerprint(self) -> str:
        """Over (name, bytes, mtime) of every file."""
        return digest(file_signature(path) for path in self._paths)

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """What reading single rows costs."""
        rows = max(self._open(path).largest_group for path in self._paths)
        if not streamed or rows <= _SMALL_GROUP:
            return ()
        return (
            f"{self.name}: training streams single rows in shuffled order, and each reads a row group of "
            f"up to {rows}; data.plane resident, tar shards or row groups of {_SMALL_GROUP} are faster",
        )

    def _read_group(self, shard: int, group: int) -> Any:
        return self._open(self._paths[shard]).images(group)


class _Shard:
    """One open Parquet file and where its row groups start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
        metadata = self._file.metadata
        self.starts = [0]
        for group in range(metadata.num_row_groups):
            self.starts.append(self.starts[-1] + metadata.row_group(group).num_rows)
        self.largest_group = max((b - a for a, b in pairwise(self.starts)), default=0)
        schema = self._file.schema_arrow
        self._column = _image_column(schema, path)
        self._names = _class_names(schema)
        self._has_labels = "label" in schema.names

    def images(self, group: int) -> Any:
        """The bytes column of one row group."""
        column = self._file.read_row_group(group, columns=[self._column]).column(0).combine_chunks()
        return column.field("bytes") if pa.types.is_struct(column.type) else column

    def labels(self) -> Iterator[str | None]:
        """The label of each row."""
        if not self._has_labels:
            yield from (None for _ in range(self.starts[-1]))
            return
        for batch in self._file.iter_batches(columns=["label"]):
            for value in batch.column(0).to_pylist():
                yield self._label(value)

    def _label(self, value: object) -> str | None:
        if value is None or value == -1:  # -1 is how Hugging Face marks a hidden test label
            return None
        if self._names is None or not isinstance(value, int):
            return str(value)
        if value >= len(self._names):
            raise InputError(
                f"{self._path}: label {value}, but its metadata names {len(self._names)} classes"
            )
        return self._names[value]


def _image_column(schema: Any, path: Path) -> str:
    for name in ("image", "bytes"):
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                return f"{name}.bytes"
    found = ", ".join(schema.names)
    raise InputError(f"{path}: no column `image` or `bytes` with image bytes (columns: {found})")


def _class_names(schema: Any) -> list[str] | None:
    """Names of a ClassLabel feature from the metadata Hugging Face writes, if they are there."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        feature = json.loads(text)["info"]["features"]["label"]
        names = feature.get("names")
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # other software's metadata: labels stay numbers
        return None
    return [str(name) for name in names] if isinstance(names, list) else None
