"""Runs side by side in processes of their own, none waiting for or repeating what another is making."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from noisystudent.ablation.running import Ended, Library, Run, attempt
from noisystudent.config import Config
from noisystudent.data.workers import context, end_with_parent, worker_count
from noisystudent.errors import Stopped
from noisystudent.runtime import StopFlag, Voice, stop_on_signal

_POLL = 0.2  # seconds between two looks at signals, and at what has been made

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(slots=True)
class _Worker:
    run: Run
    process: BaseProcess
    place: int
    outcome: str | None = "its process ended without a word"
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class _Share:
    """What of the machine one process has; a device of its own where there are several."""

    threads: int
    workers: int
    device: str | None


def side_by_side(
    runs: list[Run], library: Library, ended: Ended, *, processes: int, stop: StopFlag, voice: Voice
) -> None:
    """Make `runs`, at most `processes` at a time.

    A run is held back while one that is being made has still to make a stage that both need: it is then
    taken over instead of made twice. So of runs that are made at a time, no two make the same stage.

    Raises:
        Stopped: a signal came, and every process has ended.
    """
    waiting, working = list(runs), dict[Connection, _Worker]()
    shares = [_share(place, processes) for place in range(processes)]
    told = False
    with _ended_with(working):
        while working or waiting:
            if stop.signal is None:
                _start_ready(waiting, working, library, shares)
            elif not working:
                stop.check()
            elif not told:
                told = True
                for worker in working.values():
                    worker.process.terminate()
            for connection in wait(list(working), timeout=_POLL):
                assert isinstance(connection, Connection)
                if not _hear(connection, working[connection], voice):
                    worker = working.pop(connection)
                    connection.close()
                    if stop.signal is None or not worker.stopped:
                        ended(worker.run, worker.outcome)
    stop.check()


def _share(place: int, processes: int) -> _Share:
    visible = os.environ.get(_VISIBLE)
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    threads = max(1, torch.get_num_threads() // processes)
    workers = max(1, worker_count(None) // processes)
    return _Share(
        threads, workers, names[place % len(names)] if names and torch.cuda.is_available() else None
    )


def _start_ready(
    waiting: list[Run], working: dict[Connection, _Worker], library: Library, shares: list[_Share]
) -> None:
    """Start, in their order, the runs that have a place and share nothing with one that makes it now."""
    free = [place for place in range(len(shares)) if place not in {w.place for w in working.values()}]
    if not free or not waiting:
        return
    begun: set[tuple[str, str]] = set()
    for worker in working.values():
        begun |= library.missing(worker.run)
    for run in list(waiting):
        mine = library.missing(run)
        if free and not mine & begun:
            place = free.pop(0)
            ours, theirs = multiprocessing.Pipe(duplex=False)
            arguments = (theirs, run.name, run.config, run.folder, library.out, shares[place])
            start: Any = context("noisystudent.self_training")  # what BaseContext is said to lack: Process
            process = start.Process(target=_work, args=arguments)
            process.start()
            theirs.close()  # else its end would not be seen
            working[ours] = _Worker(run, process, place)
            waiting.remove(run)
            begun |= mine


def _hear(connection: Connection, worker: _Worker, voice: Voice) -> bool:
    """Pass on what a process says; False when it has ended."""
    try:
        kind, *said = connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        if code < 0:
            worker.outcome = f"its process was killed by {signal.Signals(-code).name}"
        return False
    if kind == "say":
        voice.say(*said)
    elif kind == "progress":
        voice.progress(*said)
    else:
        (worker.outcome,) = said
        worker.stopped = kind == "stopped"
    return True


@contextmanager
def _ended_with(working: dict[Connection, _Worker]) -> Iterator[None]:
    """No process outlives the block."""
    try:
        yield
    finally:
        for worker in working.values():
            worker.process.terminate()
        for worker in working.values():
            worker.process.join()


class _Sent:
    """The voice of a process: the one that started it speaks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def say(self, line: str) -> None:
        self.send("say", line)

    def progress(self, task: str, done: int, total: int) -> None:
        self.send("progress", task, done, total)

    def send(self, *message: object) -> None:
        with suppress(OSError):  # nobody listens any more: this process is about to end, too
            self._connection.send(message)


def _work(connection: Connection, name: str, config: Config, folder: Path, out: Path, share: _Share) -> None:
    """One run in a process of its own."""
    if share.device is not None and config.device in ("auto", "cuda"):
        os.environ[_VISIBLE] = share.device
    torch.set_num_threads(share.threads)
    if config.data.workers is None:
        config = replace(config, data=replace(config.data, workers=share.workers))
    with stop_on_signal() as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent passes it on
        end_with_parent()  # else it would stand in the way of the next call
        voice = _Sent(connection)
        try:
            voice.send("ended", attempt(name, config, folder, out, stop, voice))
        except (Stopped, KeyboardInterrupt) as error:
            voice.send("stopped", f"{error}" or "interrupted")
        connection.close()
