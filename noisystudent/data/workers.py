"""Worker processes that decode images: how many there are, how they get their work, and how they end."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util
import os
import queue
import signal
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from itertools import count, islice
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from noisystudent import cgroups
from noisystudent.console import active
from noisystudent.data.worker_process import serve
from noisystudent.errors import RunError, first_line

SILENT_SECONDS = 60.0
"""After this time without a result of any worker, a line is printed."""
LONGEST_SECONDS = 1800.0
"""After this time without a result of any worker, the work ends. A file server may be away for minutes."""
_POLL_SECONDS = 0.2  # between two checks for signals while no result comes
_CLOSE_SECONDS = 10.0  # longest wait for a worker that was killed; it may be about to start
_LONGEST_FOLDER = 70  # bytes: a socket's path has at most 107, and multiprocessing appends up to 35

Argument = TypeVar("Argument")
Result = TypeVar("Result")
_Requests = queue.SimpleQueue[tuple[int, Any] | None]  # None: there are no more
_Results = queue.SimpleQueue[tuple[int | None, Any]]  # None: the worker failed


def worker_count(workers: int | None, processes: int = 1) -> int:
    """Number of decoding processes. `None`: one for each core that this process may use.

    A control group, as of a container, may allow the time of fewer. So many processes of the same run share
    the cores.
    """
    return cgroups.usable_cores(processes) if workers is None else workers


def context(module: str = "noisystudent.data.loader") -> BaseContext:
    """Multiprocessing context: `forkserver`, or `spawn` where there is no `forkserver`.

    A plain fork is unsafe in a process with threads of torch or CUDA: a lock that another thread holds stays
    locked for ever in the child. The fork server imports `module` once, and its children start in
    milliseconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    # The resource tracker, which the fork server starts, has nothing of this program to track.
    warnings.filterwarnings("ignore", message="resource_tracker: process died unexpectedly")
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(["noisystudent.data.forkserver", module])
    return chosen


def in_workers(
    call: Callable[[Argument], Result],
    arguments: Iterator[Argument],
    workers: int,
    *,
    ahead: int = 2,
    receive: Callable[[Result], Result] | None = None,
) -> Generator[Result]:
    """Results of `call` for each argument, in order, computed by worker processes.

    The main thread never waits for a worker without end, and it stops at a signal: a worker can hang, or can
    be stopped. Close the iterator when it is not used to its end, so that the workers end.

    Args:
        call: function of one argument; it is pickled once for each worker.
        arguments: drawn in this thread, in order, `ahead` * `workers` before they are needed.
        workers: number of processes.
        ahead: number of arguments for each worker that are drawn but not delivered.
        receive: applied to each result in another thread of this process. None: nothing is.

    Raises:
        RunError: a worker died, or no worker has answered for `LONGEST_SECONDS`; also as raised by `call`.
        Stopped: a signal came.
    """
    _require_short_temporary_folder()
    team = _Team(call, receive, workers)
    atexit.register(team.close)  # before multiprocessing waits for the workers, which it would do for ever
    try:
        sent = 0
        for number in count():
            for argument in islice(arguments, number + ahead * workers - sent):
                team.requests.put((sent, argument))
                sent += 1
            if number == sent:
                return
            yield team.result(number)
    finally:
        team.close()
        atexit.unregister(team.close)


def _require_short_temporary_folder() -> None:
    if len(os.fsencode(folder := tempfile.gettempdir())) > _LONGEST_FOLDER:
        raise RunError(
            f"the temporary folder {folder} has a path of more than {_LONGEST_FOLDER} bytes, and sockets of"
            " worker processes are made in it; set TMPDIR to a shorter one, or data.workers to 0"
        )


class _Team:
    """Workers that take requests from one queue, and their results by number of the request."""

    def __init__(
        self, call: Callable[[Any], Any], receive: Callable[[Any], Any] | None, workers: int
    ) -> None:
        self.requests: _Requests = queue.SimpleQueue()
        self._results: _Results = queue.SimpleQueue()
        self._early: dict[int, Any] = {}  # results that came before their turn
        # Workers inherit this folder for their sockets; a killed one could not remove a folder of its own.
        multiprocessing.util.get_temp_dir()
        self._workers = [_Worker(call, receive, self.requests, self._results) for _ in range(workers)]

    def result(self, number: int) -> Any:
        """The result of request `number`; waits for it.

        Raises:
            RunError: a worker died, or no worker has answered for `LONGEST_SECONDS`.
            Exception: as raised by the function of the workers.
            Stopped: a signal came.
        """
        while number not in self._early:
            at, result = self._next()
            if at is None:
                raise RunError(
                    f"a worker died while images were decoded ({result}); try fewer data.workers, or more"
                    " memory or shared memory; if your own script starts the run, it needs"
                    " `if __name__ == '__main__':`"
                )
            self._early[at] = result
        result = self._early.pop(number)
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """End all workers at once. SIGKILL also ends a stopped process, and there is nothing to be saved."""
        for worker in self._workers:
            worker.kill()
            self.requests.put(None)  # for a thread that waits for a request
        for worker in self._workers:
            worker.join()

    def _next(self) -> tuple[int | None, Any]:
        """The next result of any worker, as soon as there is one."""
        progress, waited = active(), 0.0
        while True:
            try:
                return self._results.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                # Polls are counted, and not the time: a run that Ctrl-Z has stopped has not waited.
                before, waited = waited, waited + _POLL_SECONDS
            progress.check()
            names = ", ".join(str(worker.pid or "not started") for worker in self._workers)
            silence = f"no worker (process {names}) has decoded an image for {waited:.0f} s"
            if waited >= LONGEST_SECONDS:
                raise RunError(f"{silence}; check the disk or file server of the images, and run again")
            if before < SILENT_SECONDS <= waited:
                progress.say(f"{silence}; waiting up to {LONGEST_SECONDS:.0f} s")


class _Worker:
    """A worker process, and the thread of this process that starts it and exchanges messages with it.

    Messages go through a pipe. A queue of multiprocessing needs semaphores, whose names stay behind if this
    process is killed.
    """

    def __init__(
        self,
        call: Callable[[Any], Any],
        receive: Callable[[Any], Any] | None,
        requests: _Requests,
        results: _Results,
    ) -> None:
        self._call, self._receive, self._requests, self._results = call, receive, requests, results
        self._process: BaseProcess | None = None
        self._killed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Number of the process; None before it has started."""
        return None if self._process is None else self._process.pid

    def kill(self) -> None:
        """End the process at once, or as soon as it has started."""
        self._killed = True
        if self._process is not None:
            self._process.kill()

    def join(self) -> None:
        """Wait until process and thread have ended."""
        self._thread.join(_CLOSE_SECONDS)
        if self._process is not None:
            self._process.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            here, there = multiprocessing.Pipe()
            start: Any = context()  # typeshed's BaseContext has no Process
            process = start.Process(target=serve, args=(there, self._call), daemon=True)
            process.start()
            self._process = process
            there.close()  # else the pipe would not end with the worker
            if self._killed:
                self.kill()
            self._exchange(here)
        except Exception as error:  # whatever it is, the main thread must not wait for this worker
            self._results.put((None, self._reason(error)))

    def _reason(self, error: Exception) -> str:
        """Why the worker is not there any more, as far as this can be known."""
        if self._process is not None and isinstance(error, EOFError | OSError):
            self._process.join(_CLOSE_SECONDS)  # its end of the pipe is closed, so it is about to end
            if (code := self._process.exitcode or 0) < 0:
                return f"killed by {signal.Signals(-code).name}"
        return first_line(error)

    def _exchange(self, pipe: Connection) -> None:
        """Pass requests on to the worker, and its results to the main thread."""
        sent = deque[int]()
        while True:
            # The worker has its next request before it has finished the current one, so it never waits.
            while len(sent) < 2:
                try:
                    request = self._requests.get(block=not sent)
                except queue.Empty:
                    break
                if request is None:
                    return
                number, argument = request
                pipe.send(argument)
                sent.append(number)
            result = pipe.recv()
            if self._receive is not None and not isinstance(result, Exception):
                result = self._receive(result)
            self._results.put((sent.popleft(), result))
