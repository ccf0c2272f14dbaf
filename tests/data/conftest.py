"""Shards on disk, and the same shards on a web server and in a bucket, both on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from image_files import labeled_folder
from shard_files import contents, parquet, tarred, upload
from web_server import WebServer, serving

from noisystudent.data.sources import open_source, remote
from noisystudent.data.sources.stores import open_store


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, nothing in memory, and stores that are opened with the limits of the test."""
    monkeypatch.setenv("NOISYSTUDENT_CACHE", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(remote, "_memory", remote._Memory())
    open_store.cache_clear()
    yield
    open_store.cache_clear()


@pytest.fixture
def shards(tmp_path: Path, fresh: None) -> Path:
    """Two tar files and two Parquet files of 12 images each."""
    for number, name in enumerate(("a", "b")):
        folder = labeled_folder(tmp_path / name, seed=number)
        (folder / "c0" / "notes.docx").write_bytes(b"x")
        tarred(folder, tmp_path / f"{name}.tar")
        images = [data for _, data in contents(open_source([folder], labeled=True))]
        parquet(tmp_path / f"{name}.parquet", images, [n % 3 for n in range(12)], True, ["x", "y", "z"])
    return tmp_path


@pytest.fixture
def web(shards: Path) -> Iterator[WebServer]:
    files = {f"/d/{path.name}": path.read_bytes() for path in shards.iterdir() if path.is_file()}
    with serving(files) as server:
        yield server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    from moto.server import ThreadedMotoServer  # here, because most tests of this folder do not need it

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, shards: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with the shards in it, in the environment as obstore reads it."""
    return upload(s3, "bucket/d", filter(Path.is_file, shards.iterdir()), monkeypatch)
