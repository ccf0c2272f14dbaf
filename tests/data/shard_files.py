"""Functions that write small image sets as tar shards and Parquet files, and that read a source."""

from __future__ import annotations

import io
import json
import tarfile
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noisystudent.data.sources import Source
from noisystudent.data.sources.stores import NAMING, open_store


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


def upload(server: str, place: str, files: Iterable[Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """Put files into `<bucket>[/<folder>]` of an S3 server, and set its address and keys for obstore."""
    environment = {"AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket, _, folder = place.partition("/")
    urllib.request.urlopen(urllib.request.Request(f"{server}/{bucket}", method="PUT")).close()
    store = open_store(f"s3://{bucket}", NAMING)._store  # type: ignore[attr-defined]
    for path in files:
        obstore.put(store, f"{folder}/{path.name}" if folder else path.name, path)
    return f"s3://{place}"
