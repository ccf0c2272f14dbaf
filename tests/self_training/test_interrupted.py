"""A run that was killed, stopped, out of disk space or started twice ends with the same files."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Real processes, because SIGKILL cannot be simulated within this one.
FORK = multiprocessing.get_context("forkserver")

Moment = Callable[[Path, float], bool]
"""Function of (run directory, seconds since the start) that returns True when the signal must be sent."""


@pytest.fixture(scope="module", autouse=True)
def _server_that_has_imported_all() -> None:
    """Start a server that has imported the package, so that no child process needs seconds for it."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    FORK.set_forkserver_preload(["noisystudent.estimator", "noisystudent.cli", "pytest"])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def command(images: Path, out: Path) -> tuple[object, ...]:
    recipe = tiny.write_recipe(out.with_name("tiny.yaml"))
    return ("run", recipe, *tiny.flags(images), "--out", out)


def start(command: tuple[object, ...], log: Path, largest_file: int | None = None) -> ForkServerProcess:
    process = FORK.Process(target=tiny.child, args=(command, log, largest_file))
    process.start()
    return process


def end(process: ForkServerProcess) -> int:
    process.join(300)
    assert process.exitcode is not None, "the process does not end"
    return process.exitcode


def attempt(command: tuple[object, ...], out: Path, moment: Moment, number: int = signal.SIGKILL) -> int:
    """Run, send the signal at the moment, and return the exit code, which is negative if it was killed."""
    process = start(command, out.with_name("log"))
    began = time.monotonic()
    while process.is_alive() and not moment(out, time.monotonic() - began):
        time.sleep(0.0005)
    if process.is_alive():
        os.kill(process.pid or 0, number)
    return end(process)


def reached(name: str, text: str = "") -> Moment:
    """Return the moment when the file exists and contains the text; use it once per run directory."""

    def moment(out: Path, _seconds: float) -> bool:
        path = out / name
        try:
            return path.exists() and (not text or text in path.read_text())
        except FileNotFoundError:
            return False

    return moment


def after(delay: float) -> Moment:
    return lambda _out, seconds: seconds >= delay


def lines(path: Path) -> list[dict[str, float]]:
    content = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in content]


def curves(run: Path, stage: str) -> dict[str, list[tuple[int, float]]]:
    """Return {name: [(step, value)]} as TensorBoard reads them, except the speed."""
    events = EventAccumulator(str(run / "tensorboard" / stage)).Reload()
    names = set(events.Tags()["scalars"]) - {"images_per_second"}
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def assert_same(out: Path, reference: Path) -> None:
    """Compare weights, learning curves, pseudo-labels, selection, scores and verdict bit for bit."""
    for model in ("iteration-0/teacher", "iteration-1/student", "iteration-1/control"):
        assert tiny.weights(out, model) == tiny.weights(reference, model), model
        assert lines(out / model / "metrics.jsonl") == lines(reference / model / "metrics.jsonl")
    for stage in ("teacher", "student-1", "control-1"):
        assert curves(out, stage) == curves(reference, stage)
    parts = sorted(path.name for path in (reference / "iteration-1" / "labels").glob("*.parquet"))
    for name in ("selection.parquet", *(f"labels/{part}" for part in parts)):
        here, there = (pq.read_table(run / "iteration-1" / name) for run in (out, reference))
        assert here.equals(there), name
    for name in ("verdict.json", "iteration-1/evaluation.json", "metrics.jsonl", "data/dataset.json"):
        assert (out / name).read_bytes() == (reference / name).read_bytes(), name
    left = [path for path in out.rglob(".*.partial") if "checkpoint" not in path.parts]
    assert left == []


def done(out: Path) -> set[str]:
    records = [*out.rglob("stage.json"), *out.rglob("*.stage.json")]
    contents = [json.loads(path.read_text()) for path in records]
    return {record["name"] for record in contents if record["status"] == "done"}


# --- SIGKILL ---

TEACHER, ITERATION = "iteration-0/teacher", "iteration-1"
WITHIN = [
    ("data/stage.json", "running"),
    (f"{TEACHER}/checkpoint/step-00000005/.metadata", ""),
    (f"{TEACHER}/model.safetensors", ""),
    (f"{ITERATION}/labels/part-00000.parquet", ""),
    (f"{ITERATION}/selection.stage.json", "running"),
    (f"{ITERATION}/selection.parquet", ""),
    (f"{ITERATION}/student/targets.npy", ""),
    (f"{ITERATION}/student/checkpoint/step-00000010/.metadata", ""),
    (f"{ITERATION}/control/metrics.jsonl", ""),
    ("verdict.stage.json", "running"),
]
BETWEEN = [
    ("data/stage.json", "done"),
    (f"{TEACHER}/stage.json", "done"),
    (f"{ITERATION}/labels/stage.json", "done"),
    (f"{ITERATION}/selection.stage.json", "done"),
    (f"{ITERATION}/student/stage.json", "done"),
    (f"{ITERATION}/control/stage.json", "done"),
]


def kill_at(command: tuple[object, ...], out: Path, moments: list[tuple[str, str]]) -> None:
    for name, text in moments:
        assert not reached(name, text)(out, 0.0), (
            f"{name} exists already, so it is not a moment of this attempt"
        )
        assert attempt(command, out, reached(name, text)) == -signal.SIGKILL, (name, text)
        assert (out / name).exists()
    assert attempt(command, out, after(300)) == 0


@pytest.mark.parametrize(
    "moments",
    [pytest.param(WITHIN, marks=pytest.mark.slow), BETWEEN],
    ids=["within stages", "between stages"],
)
def test_killed_in_every_stage(
    command: tuple[object, ...], out: Path, finished: Path, moments: list[tuple[str, str]]
) -> None:
    kill_at(command, out, moments)
    assert_same(out, finished)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(
    images: Path, tmp_path: Path, finished: Path, command: tuple[object, ...]
) -> None:
    began = time.monotonic()
    assert attempt(command, tmp_path / "run", after(300)) == 0
    whole = time.monotonic() - began
    rng = np.random.default_rng(0)
    kills, runs = 0, 0
    interrupted: set[str] = set()
    while kills < 20:
        out = tmp_path / f"run-{runs}"
        again = (*command[:-1], out)
        while (code := attempt(again, out, after(rng.uniform(0.05, whole)))) != 0:
            assert code == -signal.SIGKILL
            kills += 1
            interrupted |= {"before", *done(out)}
        assert_same(out, finished)
        runs += 1
    assert len(interrupted) >= 4, f"the moments fell after only {interrupted}"


@pytest.mark.slow
def test_the_command_itself_is_killed(command: tuple[object, ...], out: Path, finished: Path) -> None:
    words = [sys.executable, "-m", "noisystudent", *map(str, command)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name in (f"{TEACHER}/checkpoint", f"{ITERATION}/student/checkpoint"):
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (out / name).exists():
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert_same(out, finished)


# --- SIGTERM and SIGINT ---


@pytest.mark.parametrize(
    "number, name",
    [
        (signal.SIGTERM, f"{TEACHER}/checkpoint/step-00000005"),
        pytest.param(signal.SIGINT, f"{ITERATION}/labels", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, f"{ITERATION}/selection.parquet", marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_the_run_and_the_same_command_resumes_it(
    command: tuple[object, ...], out: Path, finished: Path, number: signal.Signals, name: str
) -> None:
    assert attempt(command, out, reached(name), number) == 75
    line = out.with_name("log").read_text().splitlines()[-1]
    assert line == f"noisystudent: stopped by {number.name}; run the same command again to resume"
    assert "judgement" not in done(out)
    assert attempt(command, out, after(300)) == 0
    assert_same(out, finished)


# --- two at once ---


def test_a_second_run_on_the_same_folder_is_refused(
    command: tuple[object, ...], out: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(command, out.with_name("log"))
    while first.is_alive() and not reached(f"{TEACHER}/stage.json")(out, 0.0):
        time.sleep(0.001)
    os.kill(first.pid or 0, signal.SIGSTOP)
    try:
        assert tiny.call(*command) == 2
    finally:
        os.kill(first.pid or 0, signal.SIGCONT)
    assert f"--out {out} is in use by process {first.pid}; choose another" in tiny.one_line(capsys)
    assert end(first) == 0
    assert_same(out, finished)


# --- no space left ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts a disk of a size such as "64k", or changes it, and returns its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: str) -> Path:
        options = f"{'remount,' if folder.is_mount() else ''}size={size}"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("a small disk cannot be mounted here (needs root)")
        return folder

    yield resize
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


SIZES = [pytest.param(size, marks=pytest.mark.slow) for size in ("64k", "1m", "100m,nr_inodes=12")]


@pytest.mark.parametrize("size", ["4m", "100m,nr_inodes=46", *SIZES])
def test_a_full_disk_is_one_line_and_loses_nothing(
    command: tuple[object, ...], tmp_path: Path, finished: Path, small_disk: Callable[[str], Path], size: str
) -> None:
    out, log = small_disk(size) / "run", tmp_path / "log"
    command = (*command[:-1], out)
    assert end(start(command, log)) == 1
    assert "Traceback" not in log.read_text()
    errors = [line for line in log.read_text().splitlines() if line.startswith("noisystudent: ")]
    assert len(errors) == 1 and "No space left on device" in errors[0]
    assert str(out) in errors[0]
    before = done(out)
    small_disk("100m,nr_inodes=10k")
    assert end(start(command, log)) == 0
    text = log.read_text()
    assert all(f"{name}: done before, skipped" in text for name in before)
    assert_same(out, finished)


def test_a_file_that_may_not_grow_is_one_line_and_loses_nothing(
    command: tuple[object, ...], out: Path, finished: Path
) -> None:
    log = out.with_name("log")
    assert end(start(command, log, largest_file=400_000)) == 1
    errors = [line for line in log.read_text().splitlines() if line.startswith("noisystudent: ")]
    assert len(errors) == 1 and "File too large" in errors[0] and str(out) in errors[0]
    assert done(out) == {"data"}
    assert end(start(command, log)) == 0
    assert_same(out, finished)
