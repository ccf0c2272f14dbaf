"""A run on remote shards ends with the labels, the selection and the weights of a run on the same files."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
from image_files import encoded
from shard_files import add, tarred, upload
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
    assert_same(tmp_path / "there", tmp_path / "here")


@pytest.mark.slow
def test_a_run_on_a_thousand_shards_of_a_bucket_is_the_run_on_the_files(
    images: Path, s3: str, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for number in range(1000):
        write_shard(pool / f"{number:04d}.tar", number)
    there = upload(s3, "thousand", sorted(pool.iterdir()), monkeypatch)
    roots = {"here": f"{pool}/*.tar", "there": f"{there}/*.tar"}
    for run, shards in roots.items():
        sets = {"labeled": "labeled", "val": "val", "test": "test"}
        given = {name: (str(images / folder),) for name, folder in sets.items()} | {"unlabeled": (shards,)}
        fields = given | {"plane": "streamed", "pool_truth": False}
        config = resolve(tiny.RECIPE, [(f"data.{name}", value) for name, value in fields.items()])
        tiny.run(config, tmp_path / run)
    assert pq.read_table(tmp_path / "there" / "iteration-1" / "selection.parquet").num_rows == 10_000
    assert_same(tmp_path / "there", tmp_path / "here")


def write_shard(path: Path, number: int) -> None:
    """A tar of ten images."""
    with tarfile.open(path, "w") as archive:
        for place, pixels in enumerate(tiny.pictures(number % 3, 10, number)):
            add(archive, f"{place}.png", encoded(pixels))


def assert_same(run: Path, other: Path) -> None:
    """Models, rows, selection and labels of two runs are equal."""
    for model in ("iteration-0/teacher", "iteration-1/student", "iteration-1/control"):
        assert tiny.weights(run, model) == tiny.weights(other, model)
    for file in ("data/manifest.parquet", "iteration-1/selection.parquet"):
        assert pq.read_table(run / file).equals(pq.read_table(other / file))
    parts = sorted((other / "iteration-1" / "labels").glob("*.parquet"))
    assert parts
    for part in parts:
        assert pq.read_table(run / part.relative_to(other)).equals(pq.read_table(part))
