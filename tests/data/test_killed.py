"""A killed scan leaves no process behind, and no files that a later stage would use as finished."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from image_files import labeled_folder, prepared, random_images, write_folder

from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data import prepare as module
from noisystudent.data import scan, workers
from noisystudent.data.prepare import open_dataset, prepare
from noisystudent.data.sources import open_sources
from noisystudent.data.workers import context
from noisystudent.errors import RunError
from noisystudent.run.rundir import DataDir


def die(*_: object, **_named: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DieAfter(Progress):
    def __init__(self, checks: int) -> None:
        super().__init__()
        self._left = checks

    def check(self) -> None:
        self._left -= 1
        if self._left == 0:
            die()


def prepare_and_die(config: DataConfig, out: Path, moment: int | str) -> None:
    if isinstance(moment, str):
        setattr(module, moment, die)
        prepare(config, open_sources(config), DataDir(out), 0, Progress())
    else:
        prepare(config, open_sources(config), DataDir(out), 0, DieAfter(moment))


def prepare_with_workers_and_die(config: DataConfig, out: Path, pids: Path) -> None:
    scan._FEW, scan._CHUNK = 0, 3

    class NoteWorkersAndDie(Progress):
        def advance(self, task: str, done: int, total: int, note: str = "") -> None:
            pids.write_text(" ".join(str(child.pid) for child in multiprocessing.active_children()))
            die()

    prepare(config, open_sources(config), DataDir(out), 0, NoteWorkersAndDie())


def config_of(root: Path, workers: int = 0) -> DataConfig:
    labeled = labeled_folder(root / "labeled", 30)
    pool = write_folder(root / "pool", random_images(20, seed=5), lambda n: f"c{n % 2}/{n:02d}.png")
    return DataConfig(labeled=(str(labeled),), unlabeled=(str(pool),), resolution=8, workers=workers)


def killed(target: object, *arguments: object) -> None:
    process = context().Process(target=target, args=arguments)  # type: ignore[attr-defined]
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


# killed while listing, while scanning either set, and between any two files that prepare writes
@pytest.mark.parametrize(
    "moment", [1, 2, 3, 4, "assign", "_write_rows", "remove", "_source_notes", "write_json"]
)
def test_the_next_scan_starts_again(tmp_path: Path, moment: int | str) -> None:
    config = config_of(tmp_path)
    expected = prepared(config, tmp_path / "whole")
    out = tmp_path / "out"
    prepared(config, out)  # files of an older scan must not be used
    killed(prepare_and_die, config, out, moment)
    if moment != "remove":  # it is killed before it changes anything
        assert not (out / "dataset.json").exists()
        with pytest.raises(RunError, match=r"dataset\.json is missing"):
            open_dataset(DataDir(out), config, open_sources(config))
    again = prepared(config, out)
    assert not [path for path in out.rglob("*") if "partial" in path.name or path.name == "scratch"]
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert (out / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes(), path
    assert np.array_equal(again.pool.content_hash, expected.pool.content_hash)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_workers_end_with_the_process_that_was_killed(tmp_path: Path) -> None:
    config = config_of(tmp_path, workers=2)
    killed(prepare_with_workers_and_die, config, tmp_path / "out", tmp_path / "pids")
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    for _ in range(100):
        if not any(map(is_running, pids)):
            return
        time.sleep(0.1)
    raise AssertionError(f"some of the workers {pids} still run")


def test_a_worker_that_dies_in_a_scan_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_FEW", 0)
    # inherits the next line
    monkeypatch.setattr(workers, "context", lambda: multiprocessing.get_context("fork"))
    monkeypatch.setattr(scan, "scan_chunk", die)
    config = config_of(tmp_path, workers=1)
    with pytest.raises(
        RunError, match=r"^a worker died while images were decoded \(killed by SIGKILL\); try"
    ):
        prepared(config, tmp_path / "data")
    assert not (tmp_path / "data" / "dataset.json").exists()
