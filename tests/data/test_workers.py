"""Workers give their results in order; a dead, stopped or silent one is one line, and none stays behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import pytest
from tiny import Remembered
from worker_calls import die, double, large_pixels, refuse_three, stop_at_two

from noisystudent import cgroups
from noisystudent.console import stop_on_signal
from noisystudent.data import worker_process, workers
from noisystudent.data.workers import in_workers, worker_count
from noisystudent.errors import RunError, Stopped


@pytest.fixture(autouse=True)
def _started() -> Iterator[None]:
    """Start the fork server before the limits are short, and check that no worker is left."""
    assert list(in_workers(double, iter([1]), 1)) == [2]
    yield
    assert multiprocessing.active_children() == []


def test_results_come_in_order_and_arguments_are_drawn_as_needed() -> None:
    drawn = []

    def arguments() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    with closing(in_workers(double, arguments(), 2, ahead=3)) as results:
        for number in range(50):
            assert next(results) == 2 * number
            assert len(drawn) <= number + 6


def test_an_error_is_raised_where_its_result_would_have_been() -> None:
    results = in_workers(refuse_three, iter(range(9)), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RunError, match=r"^three is missing$"):
        next(results)


def test_a_worker_that_dies_is_one_line() -> None:
    with pytest.raises(RunError, match=r"^a worker died while images were decoded \(killed by SIGKILL\); "):
        list(in_workers(die, iter([1]), 1))


def test_a_worker_that_cannot_pass_on_its_images_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match=r"^a worker cannot pass on its images \(.*File too large.*; allow "):
        list(in_workers(large_pixels, iter([1]), 1))
    assert capfd.readouterr().err == ""


def test_a_worker_that_cannot_be_set_up_sends_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread() -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(worker_process, "quiet_worker", no_thread)
    here, there = multiprocessing.Pipe()
    worker_process.serve(there, double)
    assert str(here.recv()) == "can't start new thread"


def test_a_worker_ends_quietly_when_its_parent_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe is reset instead of ended if the parent has left a result unread."""

    def reset_pipe() -> Connection:
        here, there = multiprocessing.Pipe()
        there.send("unread")
        here.close()
        return there

    with pytest.raises(ConnectionResetError):
        reset_pipe().recv()
    monkeypatch.setattr(worker_process, "quiet_worker", lambda: None)
    worker_process.serve(reset_pipe(), double)


def test_a_stopped_worker_is_named_after_a_while_and_ended_after_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "SILENT_SECONDS", 0.4)
    monkeypatch.setattr(workers, "LONGEST_SECONDS", 1.0)
    progress = Remembered()
    line = r"^no worker \(process \d+\) has decoded an image for 1 s; check"
    with pytest.raises(RunError, match=line), stop_on_signal(progress):
        list(in_workers(stop_at_two, iter(range(9)), 1))
    (printed,) = progress.lines
    assert printed.startswith("no worker (process ") and printed.endswith("; waiting up to 1 s")


def test_a_signal_ends_the_wait_for_a_stopped_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    class Signalled(Remembered):
        def say(self, line: str) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(workers, "SILENT_SECONDS", 0.4)
    with pytest.raises(Stopped, match="SIGTERM"), stop_on_signal(Signalled()):
        list(in_workers(stop_at_two, iter(range(9)), 2))


def test_workers_need_neither_a_server_nor_a_tracker_that_has_died(capfd: pytest.CaptureFixture[str]) -> None:
    helpers: list[tuple[Any, str]] = [
        (forkserver._forkserver, "_forkserver_pid"),
        (resource_tracker._resource_tracker, "_pid"),
    ]
    for helper, pid in helpers:
        with closing(in_workers(double, iter(range(20)), 2)) as results:
            first = [next(results) for _ in range(3)]
            os.kill(number := getattr(helper, pid), signal.SIGKILL)
            os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)  # until it has ended
            try:
                assert [*first, *results] == list(range(0, 40, 2))
            except RunError as error:  # it died before all workers had started
                assert "\n" not in str(error)
        assert list(in_workers(double, iter(range(20)), 2)) == list(range(0, 40, 2))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("allowed", "processes", "expected"),
    [(None, 1, 8), (2.5, 1, 2), (64.0, 1, 8), (0.5, 1, 1), (4.0, 2, 2), (None, 3, 2)],
)
def test_no_more_workers_than_the_cores_that_a_control_group_allows(
    monkeypatch: pytest.MonkeyPatch, allowed: float | None, processes: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(cgroups, "quota", lambda: allowed)
    assert worker_count(None, processes) == expected
    assert worker_count(16, processes) == 16, "as asked for"
