"""Functions that write small image sets as tar shards and Parquet files, and that read a source."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from noisystudent.data.sources import Source


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def contents(source: Source) -> list[tuple[str | None, bytes]]:
    """(label, bytes) of every image of a source."""
    read = ((item.label, source.read(item.shard, item.offset, item.size, item.id)) for item in source.items())
    return [(label, bytes(data)) for label, data in read]


def tarred(folder: Path, path: Path, top: str = "", files: list[Path] | None = None) -> Path:
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")) if files is None else files:
            archive.add(file, top + str(file.relative_to(folder)))
    return path


def parquet(
    path: Path, images: list[bytes], labels: list[int] | None, struct: bool, names: list[str] | None
) -> Path:
    column = pa.array([{"bytes": data, "path": None} for data in images]) if struct else pa.array(images)
    columns = {"image" if struct else "bytes": column} | (
        {} if labels is None else {"label": pa.array(labels)}
    )
    table = pa.table(columns)
    if names is not None:
        feature = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})})
    pq.write_table(table, path, row_group_size=5)
    return path
