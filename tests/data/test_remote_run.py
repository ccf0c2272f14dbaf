"""A run on remote shards ends with the labels, the selection and the weights of a run on the same files."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
from shard_files import tarred
from web_server import faults, serving

from noisystudent.config import Config
from noisystudent.data.sources import stores
from noisystudent.recipes import resolve


def sharded(root: str) -> Config:
    """The tiny recipe on the shards below `root`, which are streamed."""
    given = {name: (f"{root}/{name}-{{0..1}}.tar",) for name in ("labeled", "pool", "val", "test")}
    fields = {"unlabeled" if name == "pool" else name: spec for name, spec in given.items()}
    plane = {"plane": "streamed", "workers": 0}
    return resolve(tiny.RECIPE, [(f"data.{name}", value) for name, value in (fields | plane).items()])


def test_a_run_on_a_faulty_server_is_the_run_on_the_files(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOISYSTUDENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stores, "_SILENT_SECONDS", 0.3)
    stores.open_store.cache_clear()
    for name in tiny.SETS.values():
        for number in range(2):
            halves = sorted((images / name).rglob("*.png"))[number::2]
            tarred(images / name, tmp_path / f"{name}-{number}.tar", files=halves)
    tiny.run(sharded(str(tmp_path)), tmp_path / "here")
    with serving({f"/{path.name}": path.read_bytes() for path in tmp_path.glob("*.tar")}) as web:
        web.fault = faults(0.1)
        tiny.run(sharded(web.url), tmp_path / "there")
    stores.open_store.cache_clear()
    for model in ("iteration-0/teacher", "iteration-1/student", "iteration-1/control"):
        assert tiny.weights(tmp_path / "there", model) == tiny.weights(tmp_path / "here", model)
    for file in ("data/manifest.parquet", "iteration-1/selection.parquet"):
        assert pq.read_table(tmp_path / "there" / file).equals(pq.read_table(tmp_path / "here" / file))
    parts = sorted((tmp_path / "here" / "iteration-1" / "labels").glob("*.parquet"))
    assert parts and all(
        pq.read_table(tmp_path / "there" / part.relative_to(tmp_path / "here")).equals(pq.read_table(part))
        for part in parts
    )
