"""A run of processes is killed at any moment: one, all, or the launcher. It ends with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import sets
from engine import COUNT, SEED, Box, untouched
from folders import temporary_folder
from processes import ranks
from results import differences, results
from totals import count

from noisystudent.run.lock import is_locked
from noisystudent.run.rundir import LabelsDir, RunDir

pytestmark = pytest.mark.slow

PROCESSES, KILLS, SECONDS = 2, 3, 300.0
CHAINS = max(3, COUNT // 12)
TARGETS = ("a process", "all processes", "the launcher")
Words = tuple[str, ...]


@dataclass
class Reference:
    """Results of an uninterrupted run, and the shortest duration of one: kills fall into it."""

    results: dict[str, str]
    seconds: float


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    with temporary_folder() as folder:
        box = Box(folder).make()
        started = time.monotonic()
        process = start(written(box), box, PROCESSES)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, errors
        yield Reference(results(box.path / "run"), time.monotonic() - started)


def written(box: Box) -> Words:
    """Write the images, all of one time: the listing of a folder depends on the times of its files."""
    words = sets.write("folder", box.user)
    for path in box.user.rglob("*"):
        os.utime(path, (0, 0))
    return words


def start(words: Words, box: Box, processes: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "noisystudent", *words, "--out", str(box.path / "run")]
    return subprocess.Popen(
        [*command, "--processes", str(processes)],
        cwd=box.user,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(box.temporary)},
        start_new_session=True,
    )


def wait(process: subprocess.Popen[str], seconds: float) -> float | None:
    """Wait at most so long for the end of a process; its duration if it has ended."""
    started = time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return time.monotonic() - started
    return None


def kill(process: subprocess.Popen[str], target: str, rng: np.random.Generator) -> bool:
    """Send SIGKILL; returns False if nothing of the target was there any more."""
    pids = [process.pid] if target == "the launcher" else ranks(process.pid)
    if target == "a process" and pids:
        pids = [int(rng.choice(pids))]
    struck = False
    for pid in pids if process.poll() is None else []:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        struck = True
    return struck


def wait_until_unlocked(run: Path) -> None:
    """The processes of a killed launcher end on their own."""
    end = time.monotonic() + SECONDS
    while run.exists() and is_locked(run):
        assert time.monotonic() < end, "the run is still locked"
        time.sleep(0.05)


@pytest.mark.parametrize("chain", range(CHAINS))
def test_a_run_of_killed_processes_ends_with_the_same_bits(
    request: pytest.FixtureRequest, box: Box, reference: Reference, chain: int
) -> None:
    rng = np.random.default_rng(SEED * 10_000 + chain)
    words, run, changes = written(box), box.path / "run", chain % 3 == 0
    kills, code = 0, None
    for attempt in range(KILLS + 1):
        # Every third chain goes on with another number of processes each time.
        processes = (PROCESSES, 1, 3, PROCESSES)[attempt] if changes else PROCESSES
        with untouched(box) as changed:
            process = start(words, box, processes)
            if attempt < KILLS:
                ended = wait(process, float(rng.beta(1.0, 1.5)) * reference.seconds)
                if attempt == 0 and ended is not None:
                    reference.seconds = min(reference.seconds, ended)
                kills += kill(process, str(rng.choice(TARGETS)), rng)
            _, errors = process.communicate(timeout=SECONDS)
            wait_until_unlocked(run)
        assert not [line for line in changed if line.startswith("user's")]
        assert "Traceback" not in errors
        code = process.returncode
        assert code in (0, 1, -signal.SIGKILL), errors
        if code == 0:
            break
    count(
        request,
        "kill of processes" + (": another number of processes" if changes else ": same number"),
        kills,
    )
    assert code == 0
    if changes:
        assert_every_row_once(run)
    else:
        assert differences(run, reference.results) == []


def assert_every_row_once(run: Path) -> None:
    """Sums depend on the number of processes in their last bits, but no image is lost or doubled."""
    pool = sum(sets.PER_CLASS["pool"] for _ in sets.CLASSES)
    parts = LabelsDir(RunDir(run).iteration(1).labels).parts()
    hashes = [one for part in parts for one in pq.read_table(part)["content_hash"].to_pylist()]
    assert len(hashes) == len(set(hashes)) == pool
    selected = pq.read_table(RunDir(run).iteration(1).selection)
    assert len(selected) == pool
