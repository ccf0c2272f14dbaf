"""A signal to a process or to its whole group ends a command in one line, with 75, and leaves no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import tiny
from PIL import Image

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")

Command = tuple[object, ...]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images that workers scan them, and large enough that it takes a while."""
    root = tmp_path_factory.mktemp("many")
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    Image.fromarray(noise).save(root / "first.jpg", quality=95)
    for number in range(6000):
        (root / f"{number}.jpg").hardlink_to(root / "first.jpg")
    return root


@pytest.fixture(autouse=True)
def _short_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sockets of worker processes need a short path, and pytest's own is long."""
    with TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield


@pytest.fixture
def check(images: Path, many: Path, tmp_path: Path) -> Command:
    pool = ("--unlabeled", many, "--data.workers", 2, "--data.resolution", 16)
    return ("check", "--labeled", images / "labeled", *pool, "--out", tmp_path / "check")


def processes(session: int) -> Iterator[int]:
    """Processes of a session that have not ended."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            yield int(path.name)


class Call:
    """A command in a session of its own."""

    def __init__(self, command: Command, folder: Path) -> None:
        self.log, self.temporary = folder / "log", Path(os.environ["TMPDIR"])
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "noisystudent", *map(str, command)],
                stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip

    def wait_for_workers(self) -> None:
        """Wait until there are the command, the resource tracker, the fork server and a worker."""
        while self.process.poll() is None and len(list(processes(self.process.pid))) < 4:
            time.sleep(0.005)
        assert self.process.poll() is None, self.log.read_text()

    def send(self, number: int, *, group: bool) -> None:
        if self.process.poll() is None:
            (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self) -> tuple[int, list[str]]:
        """The exit code and all lines; every process has ended."""
        code = self.process.wait(120)
        for _ in range(300):
            if not list(processes(self.process.pid)):
                return code, self.log.read_text().splitlines()
            time.sleep(0.1)
        raise AssertionError(f"{list(processes(self.process.pid))} outlive the command")


@pytest.mark.parametrize(
    ("number", "group"),
    [
        (signal.SIGTERM, True),
        pytest.param(signal.SIGHUP, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, True, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_scan_with_workers(
    check: Command, tmp_path: Path, number: signal.Signals, group: bool
) -> None:
    call = Call(check, tmp_path)
    call.wait_for_workers()
    call.send(number, group=group)
    line = f"noisystudent: stopped by {number.name}; run the same command again to resume"
    assert call.end() == (75, [line])


def test_a_second_ctrl_c_ends_at_once(check: Command, tmp_path: Path) -> None:
    call = Call(check, tmp_path)
    call.wait_for_workers()
    for _ in range(2):
        call.send(signal.SIGINT, group=True)
        time.sleep(0.01)
    code, lines = call.end()
    assert (code in (130, 75)) and len(lines) == 1, (code, lines)


def test_a_killed_command_leaves_no_process_and_no_cache(finished: Path, many: Path, tmp_path: Path) -> None:
    call = Call(("predict", finished, many, "--out", tmp_path / "out.csv"), tmp_path)
    while call.process.poll() is None and not list(call.temporary.glob("noisystudent-*/images.npy")):
        time.sleep(0.005)
    call.send(signal.SIGKILL, group=False)
    assert call.end() == (-signal.SIGKILL, [])
    for _ in range(300):
        if not list(call.temporary.glob("noisystudent-*")):
            return
        time.sleep(0.1)
    raise AssertionError("the decoded images are still there")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_a_signal_at_any_moment_of_a_run_is_one_line_and_75(
    images: Path, finished: Path, tmp_path: Path, seed: int
) -> None:
    """Not before Python itself has started."""
    rng = np.random.default_rng(seed)
    recipe = tiny.write_recipe(tmp_path / "tiny.yaml")
    streamed = ("--data.plane", "streamed", "--data.workers", 2)
    command = ("run", recipe, *tiny.flags(images), *streamed, "--out", tmp_path / "run")
    number = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    for _ in range(3):
        call = Call(command, tmp_path)
        time.sleep(rng.uniform(0.5, 12))
        call.send(number, group=bool(rng.integers(2)))
        code, lines = call.end()
        assert "Traceback" not in "\n".join(lines)
        if code != 0:  # it had ended already
            ends = [line for line in lines if line.startswith("noisystudent: ")]
            assert code == 75 and len(ends) == 1 and lines[-1] == ends[0], (code, lines)
    assert Call(command, tmp_path).end()[0] == 0
    for model in ("iteration-0/teacher", "iteration-1/student"):
        assert tiny.weights(tmp_path / "run", model) == tiny.weights(finished, model)
