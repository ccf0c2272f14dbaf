"""Any number of workers, killed at any moment, make the parts that one process makes, each of them once."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from labeled_pool import contents, random_pool
from processes import _start_server

from noisystudent.console import Progress
from noisystudent.errors import RunError, Stopped
from noisystudent.pseudo_label.parts import check_about, check_parts
from noisystudent.records import PseudoLabels
from noisystudent.run.rundir import LabelsDir
from noisystudent.run.shared_parts import SharedParts

FORK = multiprocessing.get_context("forkserver")
IMAGES, PART, BATCH = 95, 12, 4  # 8 parts of `CONFIG`
BATCHES = -(-IMAGES // BATCH)


def work(
    out: Path, joins: bool, seconds: float = 0.0, dies: Event | None = None, killed: bool = False
) -> None:
    """Label the pool as one of several workers. With `dies` one is killed, and the others wait for that."""
    pool = random_pool(IMAGES)

    def before(call: int) -> None:
        if dies is not None and call == PART // BATCH + 1:
            if killed:
                dies.set()
                os.kill(os.getpid(), signal.SIGKILL)
            assert dies.wait(60)
        time.sleep(seconds)
        with (out.parent / "batches").open("a") as file:
            file.write(f"{os.getpid()}\n")

    pool.before_call = before
    pool.label(out, join=(lambda: None) if joins else None)


def start(*arguments: object) -> multiprocessing.process.BaseProcess:
    _start_server()
    process = FORK.Process(target=work, args=arguments)
    process.start()
    return process


def check(out: Path, whole: dict[str, bytes], name: str = "parts.json") -> None:
    labels = PseudoLabels(out, 6)
    check_parts(labels)
    assert contents(labels) == whole
    assert {path.name for path in out.iterdir()} == {*whole, name}, "nothing temporary"


def test_workers_of_which_one_is_killed_make_the_parts_of_one_process(tmp_path: Path) -> None:
    whole, out = contents(random_pool(IMAGES).label(tmp_path / "one")), tmp_path / "several"
    out.mkdir()
    dies = FORK.Event()
    workers = [
        start(out, joins, 0.02, dies, killed)
        for joins, killed in ((False, False), (True, True), (True, False))
    ]
    for worker in workers:
        worker.join(60)
    assert sorted(worker.exitcode or 0 for worker in workers) == [-signal.SIGKILL, 0, 0]
    check(out, whole)
    made = len((tmp_path / "batches").read_text().splitlines())
    # The batches of its unfinished part, and its first part if that was not yet on disk.
    assert made - BATCHES in (1, 1 + PART // BATCH), "everything else once"


def test_a_worker_that_finds_all_parts_makes_none_and_ends(tmp_path: Path) -> None:
    pool = random_pool(IMAGES)
    whole = contents(pool.label(tmp_path / "out"))
    pool.calls = 0
    pool.label(tmp_path / "out", join=lambda: None)
    assert pool.calls == 0
    check(tmp_path / "out", whole)


def test_a_worker_that_may_not_join_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    def join() -> None:
        raise Stopped("the run has other inputs")

    with pytest.raises(Stopped):
        random_pool().label(tmp_path / "out", join=join)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def folder(tmp_path: Path) -> LabelsDir:
    (tmp_path / "labels").mkdir()
    return LabelsDir(tmp_path / "labels")


def shared(folder: LabelsDir) -> SharedParts:
    return SharedParts(folder, {"rows": 4}, check_about)


@pytest.mark.parametrize("links", [True, False])
def test_the_first_version_of_a_part_stays_and_has_its_checksum(
    folder: LabelsDir, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """A process that is suspended loses its lease, goes on, and makes other last bits than its successor."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links")))
    part = folder.part(0)
    with shared(folder) as slow, shared(folder) as quick:
        assert slow.claim(part) and not quick.claim(part)
        os.utime(folder.shared / "part-00000.0", (1, 1))
        assert quick.claim(part)
        quick.publish(part, lambda path: path.write_text("quick"))
        slow.publish(part, lambda path: path.write_text("slower"))
        assert not slow.claim(part) and not quick.claim(part)
        quick.finish([part])
        slow.finish([part])
    assert part.read_text() == "quick"
    check_size = {path.name for path in folder.path.iterdir()}
    assert check_size == {part.name, "parts.json"}
    assert '"bytes": 5' in folder.index.read_text()


def test_only_a_file_system_without_hard_links_renames_a_part(
    folder: LabelsDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After another error a rename could replace the part of a faster process."""
    monkeypatch.setattr(
        os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "an error of the disk"))
    )
    with shared(folder) as parts:
        assert parts.claim(folder.part(0))
        with pytest.raises(RunError, match="an error of the disk"):
            parts.publish(folder.part(0), lambda path: path.write_text("whole"))
    assert not folder.part(0).exists()


def test_a_part_whose_process_died_before_it_appeared_is_made_again(folder: LabelsDir) -> None:
    part = folder.part(0)
    with shared(folder) as first:
        assert first.claim(part)
        with pytest.raises(RunError, match="No space"):
            first.publish(part, full)
        assert not part.exists()
    with shared(folder) as second:
        assert second.claim(part)
        second.publish(part, lambda path: path.write_text("whole"))
        second.finish([part])
    assert '"bytes": 5' in folder.index.read_text()


def full(path: Path) -> None:
    path.write_text("ha")
    raise OSError(28, "No space left on device")


def test_nothing_is_published_into_a_folder_of_other_inputs(folder: LabelsDir, tmp_path: Path) -> None:
    part = folder.part(0)
    with shared(folder) as old:
        assert old.claim(part)
        folder.path.rename(tmp_path / "superseded")
        folder.path.mkdir()
        with pytest.raises(RunError, match="was moved away"):
            old.publish(part, lambda path: path.write_text("of other inputs"))
        assert not old.claim(folder.part(1))
        with pytest.raises(RunError, match="was moved away"):
            old.wait(part, Progress())
    assert list(folder.path.iterdir()) == []


@pytest.mark.slow
def test_an_array_of_eight_workers_of_which_four_are_killed_at_random_moments(tmp_path: Path) -> None:
    """Like a SLURM array: a killed task is not started again, and what it had begun is taken over."""
    whole = contents(random_pool(IMAGES).label(tmp_path / "one"))
    for number in range(5):
        draw, out = random.Random(number), tmp_path / str(number) / "several"
        out.mkdir(parents=True)
        first = start(out, False, 0.05)
        workers = [first, *(start(out, True, 0.05) for _ in range(7))]
        for victim in draw.sample(workers[1:], 4):
            time.sleep(draw.uniform(0, 0.4))
            victim.kill()
        for worker in workers:
            worker.join(120)
        assert first.exitcode == 0
        # One that is killed after the end of the others leaves its empty folder until the next call.
        random_pool(IMAGES).label(out)
        check(out, whole)
        made = len((out.parent / "batches").read_text().splitlines())
        lost = 2 * PART // BATCH  # of a killed process: the part in work, and the one being written
        assert BATCHES <= made <= BATCHES + 4 * lost
