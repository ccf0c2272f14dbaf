"""A run on remote shards ends with the labels, the selection and the weights of a run on the same files."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
from image_files import encoded
from shard_files import add, tarred, upload
from web_server import FAULTS, WebServer, faults, serving

from noisystudent.config import Config
from noisystudent.data.sources import remote, stores
from noisystudent.data.sources.stores import open_store
from noisystudent.errors import RunError
from noisystudent.recipes import resolve
from noisystudent.self_training import self_train


def sharded(root: str, shards: str = "{0..1}.tar", **options: object) -> Config:
    """The tiny recipe on the shards below `root`, which are streamed."""
    given = {field: (f"{root}/{name}-{shards}",) for field, name in tiny.SETS.items()}
    fields = given | {"plane": "streamed", "workers": 0} | options
    return resolve(tiny.RECIPE, [(f"data.{name}", value) for name, value in fields.items()])


@pytest.fixture(scope="module")
def local(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of each set, and `run`, a run on them. Not to be changed."""
    root = tmp_path_factory.mktemp("local")
    for name in tiny.SETS.values():
        for number in range(2):
            halves = sorted((images / name).rglob("*.png"))[number::2]
            tarred(images / name, root / f"{name}-{number}.tar", files=halves)
    tiny.run(sharded(str(root)), root / "run")
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Path on a web server of each shard below `root`, and its bytes."""
    return {f"/{path.name}": path.read_bytes() for path in root.glob("*.tar")}


@pytest.fixture
def small(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many requests, so that every fault comes."""
    monkeypatch.setattr(stores, "_SILENT_SECONDS", 0.3)
    monkeypatch.setattr(remote, "BLOCK", 1024)
    monkeypatch.setattr(remote, "_REQUEST", 1)


def assert_faulty(web: WebServer) -> None:
    """Every kind of fault came, in about a tenth of many requests."""
    assert set(web.faults) == set(FAULTS)
    assert len(web.requests) > 100
    assert 0.05 < len(web.faults) / len(web.requests) < 0.2


def test_a_run_on_a_faulty_web_server_is_the_run_on_the_files(
    local: Path, small: None, tmp_path: Path
) -> None:
    with serving(contents(local)) as web:
        web.fault = faults(0.1)
        tiny.run(sharded(web.url), tmp_path / "run")
    assert_faulty(web)
    assert_same(tmp_path / "run", local / "run")


def test_a_run_on_a_faulty_bucket_is_the_run_on_the_files(
    local: Path, small: None, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = upload(s3, "faulty", sorted(local.glob("*.tar")), monkeypatch)
    with serving({}, upstream=s3.removeprefix("http://")) as web:
        monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
        open_store.cache_clear()
        web.fault = faults(0.1)
        tiny.run(sharded(bucket, "*.tar"), tmp_path / "run")
    assert_faulty(web)
    assert_same(tmp_path / "run", local / "run")


class Changing(tiny.Remembered):
    """Calls a function when a line of the run begins with `start`."""

    def __init__(self, start: str, change: Callable[[], object]) -> None:
        super().__init__()
        self._start, self._change = start, change

    def say(self, line: str) -> None:
        super().say(line)
        if line.startswith(self._start):
            self._change()


# The line after which a shard of a set changes: before the teacher, the labels and the student.
STAGES = [
    pytest.param("teacher: resnet", "labeled", marks=pytest.mark.slow),
    ("teacher: val", "pool"),
    pytest.param("student-1: resnet", "pool", marks=pytest.mark.slow),
]


@pytest.fixture
def forgetful(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays in memory, as with a large pool."""
    monkeypatch.setattr(remote, "_MEMORY", 0)
    monkeypatch.setattr(remote, "_AHEAD", 0)


@pytest.mark.parametrize(("line", "name"), STAGES)
def test_a_shard_that_is_lost_stops_the_run_and_restored_it_is_the_run_on_the_files(
    local: Path, forgetful: None, tmp_path: Path, line: str, name: str
) -> None:
    files, shard = contents(local), f"/{name}-0.tar"
    with serving(files) as web:
        lost = Changing(line, lambda: files.pop(shard))
        with pytest.raises(
            RunError, match=rf"{name}-0/.* cannot be read any more .*404.*; restore it and run"
        ):
            self_train(sharded(web.url, cache_gb=0), tmp_path / "run", progress=lost)
        files |= contents(local)
        remote._memory = remote._Memory()  # as another process has it
        tiny.run(sharded(web.url, cache_gb=0), tmp_path / "run")
    assert_same(tmp_path / "run", local / "run")


@pytest.mark.parametrize(("line", "name"), STAGES)
def test_a_shard_that_is_replaced_stops_the_run_and_again_it_is_the_run_on_the_new_files(
    local: Path, forgetful: None, tmp_path: Path, line: str, name: str
) -> None:
    shard = f"{name}-0.tar"
    for path in local.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with tarfile.open(tmp_path / shard, "w") as archive:
        for kind, label in enumerate(tiny.CLASSES):
            for number, pixels in enumerate(tiny.pictures(kind, 5, 99)):
                add(archive, f"{label}/{number:02d}.png", encoded(pixels))
    files = contents(local)
    with serving(files) as web:
        new = Changing(line, lambda: files.update(contents(tmp_path)))
        with pytest.raises(RunError, match=rf"/{shard} was replaced while it was in use; run again"):
            self_train(sharded(web.url, cache_gb=0), tmp_path / "run", progress=new)
        remote._memory = remote._Memory()
        tiny.run(sharded(web.url, cache_gb=0), tmp_path / "run")
    tiny.run(sharded(str(tmp_path)), tmp_path / "here")
    assert_same(tmp_path / "run", tmp_path / "here")


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
