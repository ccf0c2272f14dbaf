"""What a worker process does: it answers the requests of its parent, and prints nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from noisystudent.console import STOP_SIGNALS
from noisystudent.errors import NoisyStudentError, RunError, first_line


def serve(pipe: Connection, call: Callable[[Any], Any]) -> None:
    """Answer requests until the parent closes the pipe. This is the main function of a worker.

    No error leaves it, because multiprocessing would print a traceback: the parent prints the line of a
    failed run.
    """
    try:
        quiet_worker()
        while True:
            pipe.send_bytes(_answer(call, pipe.recv()))
    except (EOFError, OSError):  # the parent has closed the pipe, or it was killed
        return
    except Exception as error:  # there is no thread, or no memory for the request
        with suppress(OSError):
            pipe.send(error)


def _answer(call: Callable[[Any], Any], argument: Any) -> Any:
    """Result of `call`, or its error, as bytes for the pipe."""
    try:
        result = call(argument)
    except Exception as error:
        if not isinstance(error, NoisyStudentError):  # a bug: the parent does not know its place
            error.add_note(traceback.format_exc())
        result = error
    try:
        return ForkingPickler.dumps(result)
    except Exception as error:  # pixels lie in shared memory, whose descriptor goes through a socket
        return ForkingPickler.dumps(
            RunError(
                f"a worker cannot pass on its images ({first_line(error)}); allow more shared memory, larger"
                " files or more open files, or set data.workers to 0"
            )
        )


def quiet_worker() -> None:
    """Set up a worker: one torch thread, stop signals are ignored, and the worker ends when its parent ends.

    A Ctrl-C reaches all processes of a terminal, and a scheduler may signal all processes of a job. Only the
    parent handles it, and then ends its workers.
    """
    torch.set_num_threads(1)  # the workers fill the cores already
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Start a thread that ends this process when its parent process has ended.

    Needed when the parent is killed: the fork server does not notice that, and its processes would stay.
    """

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)  # sys.exit would only end this thread

    threading.Thread(target=wait, daemon=True).start()
