"""Run several runs at the same time, each in its own process, without making a shared stage twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from noisystudent.ablation.runs import Library, Run, attempt
from noisystudent.config import Config
from noisystudent.console import Progress, stop_on_signal
from noisystudent.data.worker_process import end_with_parent
from noisystudent.data.workers import context, worker_count
from noisystudent.errors import Stopped
from noisystudent.run.rundir import RunDir

_POLL = 0.2  # seconds between two checks for signals and for finished stages

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(slots=True)
class _Worker:
    """A process and the run that it makes.

    Attributes:
        place: index of its share of the machine.
        outcome: why the run failed. None: it did not fail.
        stopped: True if the run was stopped by a signal.
    """

    run: Run
    process: BaseProcess
    place: int
    outcome: str | None = "its process ended without a message"
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class _Share:
    """Share of the machine that one process uses.

    Attributes:
        threads: threads of torch.
        workers: decoding processes.
        device: value of CUDA_VISIBLE_DEVICES, one GPU. None: no GPU.
    """

    threads: int
    workers: int
    device: str | None


def side_by_side(
    runs: list[Run],
    library: Library,
    on_end: Callable[[Run, str | None], None],
    *,
    processes: int,
    progress: Progress,
) -> None:
    """Make `runs`, at most `processes` at a time.

    A run waits while another one still has to make a stage that both need. It then takes the stage over
    instead of making it again. So no two runs make the same stage at the same time.

    Args:
        runs: runs to make, in the order in which they should start.
        library: run directories from which stages can be taken over.
        on_end: called with each run that ended, and why it failed; None: it did not fail.
        processes: largest number of processes at a time.
        progress: receives the lines and bars of all runs.

    Raises:
        Stopped: a signal came, and every process has ended.
    """
    waiting, working = list(runs), dict[Connection, _Worker]()  # one connection for each running process
    shares = [_share(place, processes) for place in range(processes)]
    with _terminating(working):
        while working or waiting:
            if progress.signal is None:
                _start_ready(waiting, working, library, shares)
            elif not working:
                progress.check()
            else:  # again and again: a process ignores the signal until it has set its handler
                for worker in working.values():
                    worker.process.terminate()
            for connection in wait(list(working), timeout=_POLL):
                assert isinstance(connection, Connection)
                if not _receive(connection, working[connection], progress):
                    worker = working.pop(connection)
                    connection.close()
                    # A run that was stopped has not failed: the same command resumes it.
                    if progress.signal is None or not worker.stopped:
                        on_end(worker.run, worker.outcome)
    progress.check()


def _share(place: int, processes: int) -> _Share:
    """An equal share of threads and decoding processes, and one GPU. With too few GPUs, some are shared."""
    visible = os.environ.get(_VISIBLE)
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    # More threads in all than cores would make every process slower.
    threads = max(1, torch.get_num_threads() // processes)
    workers = max(1, worker_count(None) // processes)
    return _Share(
        threads, workers, names[place % len(names)] if names and torch.cuda.is_available() else None
    )


def _start_ready(
    waiting: list[Run], working: dict[Connection, _Worker], library: Library, shares: list[_Share]
) -> None:
    """Start runs while there is a free place, leaving out those that need a stage that is being made now."""
    free = [place for place in range(len(shares)) if place not in {w.place for w in working.values()}]
    if not free or not waiting:
        return
    begun: set[tuple[str, str]] = set()
    for worker in working.values():
        begun |= library.missing(worker.run)
    for run in list(waiting):
        missing = library.missing(run)
        if free and not missing & begun:
            place = free.pop(0)
            receiver, sender = multiprocessing.Pipe(duplex=False)
            arguments = (sender, run.name, run.config, run.folder, library.out)
            start: Any = context("noisystudent.self_training")  # typeshed's BaseContext has no Process
            process = start.Process(target=_work, args=arguments, kwargs={"share": shares[place]})
            process.start()
            sender.close()  # otherwise the receiver would not notice that the process has ended
            working[receiver] = _Worker(run, process, place)
            waiting.remove(run)
            begun |= missing


def _receive(connection: Connection, worker: _Worker, progress: Progress) -> bool:
    """Handle one message of a process; returns False if the process has ended."""
    try:
        kind, *message = connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        if code < 0:
            worker.outcome = f"its process was killed by {signal.Signals(-code).name}"
        return False
    if kind == "say":
        progress.say(*message)
    elif kind == "advance":
        progress.advance(*message)
    else:
        (worker.outcome,) = message
        worker.stopped = kind == "stopped"
    return True


@contextmanager
def _terminating(working: dict[Connection, _Worker]) -> Iterator[None]:
    """Terminate all processes at the end of the block, also after an error."""
    try:
        yield
    finally:
        while running := [worker.process for worker in working.values() if worker.process.is_alive()]:
            for process in running:  # again and again, see above
                process.terminate()
            for process in running:
                process.join(_POLL)


class _ForwardedProgress(Progress):
    """Progress that sends its lines and bars to the process that started this one."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def say(self, line: str) -> None:
        self.send("say", line)

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        self.send("advance", task, done, total, note)

    def send(self, *message: object) -> None:
        with suppress(OSError):  # the parent process has ended, and this one will end soon
            self._connection.send(message)


def _work(
    connection: Connection, name: str, config: Config, folder: RunDir, out: Path, *, share: _Share
) -> None:
    """Make one run. This is the main function of a process."""
    if share.device is not None and config.device in ("auto", "cuda"):
        os.environ[_VISIBLE] = share.device
    torch.set_num_threads(share.threads)
    if config.data.workers is None:
        config = replace(config, data=replace(config.data, workers=share.workers))
    progress = _ForwardedProgress(connection)
    try:
        with stop_on_signal(progress):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent passes it on
            end_with_parent()  # an orphan would keep its run locked when the same command is called again
            progress.send("ended", attempt(name, config, folder, out, progress))
    except Stopped as error:
        progress.send("stopped", str(error))
    connection.close()
