"""`run --processes N`: a signal, the death of a process and the death of the launcher lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from processes import ranks
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher import api

from noisystudent import cgroups
from noisystudent.errors import NoisyStudentError
from noisystudent.run.launch import launch
from noisystudent.run.lock import is_locked
from noisystudent.run.rundir import ModelDir

PROCESSES, STEPS, AT = 2, 150, 25
SECONDS = 240.0  # within which all processes have ended
pytestmark = pytest.mark.slow  # each call of the command takes seconds to import torch in each process

Call = list[str]


@pytest.fixture(scope="module")
def call(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Call:
    """The command without its folder: a long training on the labels."""
    recipe = tiny.write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml")
    words = [sys.executable, "-m", "noisystudent", "run", recipe, *tiny.flags(images), "--students", 0]
    words += ["--teacher.train.steps", STEPS, "--teacher.train.checkpoint_steps", 10]
    words += ["--teacher.train.lr", 0.1, "--processes", PROCESSES]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def uninterrupted(call: Call, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of the model."""
    out = tmp_path_factory.mktemp("whole") / "run"
    start_and_end(call, out)
    return tiny.weights(out, "iteration-0/teacher")


def test_processes_share_the_cores_that_this_one_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than cores wait for each other; a job of a scheduler has a part of the machine."""
    monkeypatch.setattr(os, "environ", {**os.environ})
    os.environ.pop("OMP_NUM_THREADS", None)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(32), raising=False)
    monkeypatch.setattr(cgroups, "quota", lambda: None)
    monkeypatch.setattr(api, "elastic_launch", lambda *_: lambda *_: None)
    launch(4, "cpu")
    assert os.environ["OMP_NUM_THREADS"] == "8"


@pytest.mark.parametrize(
    ("codes", "expected"), [({1: 75, 0: 75}, 75), ({1: 1, 0: 75}, 1), ({0: 75, 1: 2}, 2), ({0: 75, 1: -9}, 1)]
)
def test_a_failure_counts_more_than_the_processes_that_were_stopped_after_it(
    monkeypatch: pytest.MonkeyPatch, codes: dict[int, int], expected: int
) -> None:
    """A scheduler tries again after 75."""

    def fail(*_: object) -> None:
        now = [ProcessFailure(rank, rank, code, "") for rank, code in codes.items()]
        raise ChildFailedError("run", {failure.local_rank: failure for failure in now})

    monkeypatch.setattr(os, "environ", {**os.environ})
    monkeypatch.setattr(api, "elastic_launch", lambda *_: fail)
    with pytest.raises(NoisyStudentError) as error:
        launch(2, "cpu")
    assert error.value.exit_code == expected


def start(call: Call, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*call, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def start_and_end(call: Call, out: Path) -> None:
    process = start(call, out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors == ""


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def in_training(process: subprocess.Popen[str], out: Path) -> None:
    """Wait until the training has logged the step `AT`."""
    metrics = ModelDir(out / "iteration-0" / "teacher").metrics
    try:
        wait_for(lambda: metrics.is_file() and f'"step": {AT},' in metrics.read_text())
    except AssertionError:
        process.terminate()
        raise


def snapshots(out: Path) -> list[str]:
    return sorted(path.name for path in ModelDir(out / "iteration-0" / "teacher").checkpoints.glob("step-*"))


def finish(call: Call, out: Path, uninterrupted: str) -> None:
    wait_for(lambda: not is_locked(out))
    start_and_end(call, out)
    assert tiny.weights(out, "iteration-0/teacher") == uninterrupted


def test_a_signal_to_the_launcher_stops_all_after_the_same_step(
    call: Call, uninterrupted: str, tmp_path: Path
) -> None:
    process = start(call, tmp_path / "run")
    in_training(process, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 75, errors
    assert [line.partition(":")[0] for line in errors.splitlines()] == ["noisystudent"], errors
    assert "SIGTERM" in errors
    assert int(snapshots(tmp_path / "run")[-1].removeprefix("step-")) >= AT
    finish(call, tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_with_one_line(
    call: Call, uninterrupted: str, tmp_path: Path, rank: int
) -> None:
    process = start(call, tmp_path / "run")
    in_training(process, tmp_path / "run")
    os.kill(ranks(process.pid)[rank], signal.SIGKILL)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, errors
    assert errors.splitlines() == [
        f"noisystudent: process {rank} of the run was killed by SIGKILL; run the same command again to resume"
    ]
    finish(call, tmp_path / "run", uninterrupted)


def test_a_signal_to_one_process_stops_all_with_one_line(
    call: Call, uninterrupted: str, tmp_path: Path
) -> None:
    process = start(call, tmp_path / "run")
    in_training(process, tmp_path / "run")
    os.kill(ranks(process.pid)[1], signal.SIGTERM)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 75, errors
    assert len(errors.splitlines()) == 1 and errors.endswith("run the same command again to resume\n"), errors
    finish(call, tmp_path / "run", uninterrupted)


def test_an_error_that_all_processes_have_is_one_line(call: Call, tmp_path: Path) -> None:
    process = start([*call, "--teacher.train.lr", "1e6"], tmp_path / "run")
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, errors
    (line,) = errors.splitlines()
    assert line.startswith("noisystudent: teacher") and "lr" in line


def test_processes_of_a_killed_launcher_stop(call: Call, uninterrupted: str, tmp_path: Path) -> None:
    process = start(call, tmp_path / "run")
    in_training(process, tmp_path / "run")
    left = ranks(process.pid)
    process.kill()
    process.communicate(timeout=SECONDS)
    wait_for(lambda: not any(Path(f"/proc/{each}").exists() for each in left))
    finish(call, tmp_path / "run", uninterrupted)
