"""A unit of work has one living owner: a dead one is replaced by one process, a living one by none."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from noisystudent.run.leases import BEAT, Leases

FORK = multiprocessing.get_context("forkserver")
DEAD = 12 * BEAT + 1  # seconds


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Leases, Leases]]:
    with Leases(tmp_path / "leases") as first, Leases(tmp_path / "leases") as second:
        yield first, second


def of_another_machine(lease: Path, age: float) -> None:
    """Let a lease be of a process of another machine, renewed `age` seconds ago."""
    lease.write_text(json.dumps(json.loads(lease.read_text()) | {"processes": "another"}))
    renewed = lease.stat().st_mtime - age
    os.utime(lease, (renewed, renewed))


def test_a_unit_has_one_owner_until_it_is_given_back(two: tuple[Leases, Leases]) -> None:
    first, second = two
    assert first.claim("a") and second.claim("b")
    assert not second.claim("a") and not first.claim("a") and not first.claim("b")
    first.release("a")
    assert second.claim("a") and not first.claim("a")


def test_a_look_says_what_a_claim_would_find_and_takes_nothing(
    tmp_path: Path, two: tuple[Leases, Leases]
) -> None:
    first, second = two
    assert second.is_free("a") and not (tmp_path / "leases").exists()
    for number in range(3):
        assert first.claim("a")
        assert not second.is_free("a")
        first.release("a")
        assert second.is_free("a") and not (tmp_path / "leases" / f"a.{number + 1}").exists()
    (tmp_path / "leases").rename(tmp_path / "superseded")
    assert first.claim("a") and not second.is_free("a") and not second.claim("a"), "in the new folder"


def test_the_end_gives_all_units_back(tmp_path: Path) -> None:
    with Leases(tmp_path / "leases") as leases:
        assert leases.claim("a")
    with Leases(tmp_path / "leases") as leases:
        assert leases.claim("a")


def test_a_unit_that_is_done_is_not_free_at_once(two: tuple[Leases, Leases]) -> None:
    first, second = two
    assert first.claim("a")
    first.end("a")
    assert not second.claim("a")


@pytest.mark.parametrize(("age", "stolen"), [(DEAD - 5, False), (DEAD, True)])
def test_a_silent_owner_loses_its_unit_and_no_clock_is_asked(
    tmp_path: Path, two: tuple[Leases, Leases], monkeypatch: pytest.MonkeyPatch, age: float, stolen: bool
) -> None:
    first, second = two
    assert first.claim("a")
    of_another_machine(tmp_path / "leases" / "a.0", age)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert second.claim("a") is stolen
    assert not first.claim("a"), "one of them has it"


def test_an_owner_that_shows_signs_of_life_keeps_its_unit(tmp_path: Path) -> None:
    beat = 0.02
    with Leases(tmp_path / "leases", beat=beat) as first, Leases(tmp_path / "leases", beat=beat) as second:
        assert first.claim("a")
        of_another_machine(tmp_path / "leases" / "a.0", DEAD)
        deadline = time.monotonic() + 10  # until the first sign of life
        while (tmp_path / "leases" / "a.0").stat().st_mtime < time.time() - DEAD / 2:
            assert time.monotonic() < deadline
            time.sleep(beat)
        assert not second.claim("a")


def own_and_die(folder: Path) -> None:
    leases = Leases(folder)
    leases.__enter__()
    os._exit(0 if leases.claim("a") else 1)


def test_a_unit_of_a_dead_process_of_this_machine_is_free_at_once(tmp_path: Path) -> None:
    process = FORK.Process(target=own_and_die, args=(tmp_path / "leases",))
    process.start()
    process.join()
    assert process.exitcode == 0
    with Leases(tmp_path / "leases") as leases:
        assert leases.claim("a")


@pytest.mark.parametrize("content", ["", "{", "1", "{}"])
def test_a_lease_that_is_being_written_is_alive(tmp_path: Path, content: str) -> None:
    with Leases(tmp_path / "leases") as leases:
        assert leases.claim("b")
        (tmp_path / "leases" / "a.0").write_text(content)
        assert not leases.claim("a")


def test_one_of_many_thieves_wins_each_time(tmp_path: Path) -> None:
    size, folder = 8, tmp_path / "leases"
    with ExitStack() as stack:
        thieves = [stack.enter_context(Leases(folder)) for _ in range(size)]
        pool, together = stack.enter_context(ThreadPoolExecutor(size)), threading.Barrier(size)

        def steal(thief: Leases) -> bool:
            together.wait()
            return thief.claim("a")

        for number in range(20):
            assert sum(pool.map(steal, thieves)) == 1, number
            of_another_machine(folder / f"a.{number}", DEAD)


def test_a_folder_that_was_moved_away_has_no_units(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with Leases(tmp_path / "run" / "leases") as leases:
        assert leases.claim("a")
        (tmp_path / "run").rename(tmp_path / "superseded")
        assert not leases.claim("b")
    assert not (tmp_path / "run").exists()
