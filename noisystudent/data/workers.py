"""Worker processes that decode images: their number, and how they start and end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.context import BaseContext

import torch


def worker_count(workers: int | None) -> int:
    """Number of decoding processes. `None`: one for each core that this process may use."""
    if workers is not None:
        return workers
    # cpu_count() also counts cores that this process may not use; macOS has no sched_getaffinity
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def context(module: str = "noisystudent.data.loader") -> BaseContext:
    """Multiprocessing context: `forkserver`, or `spawn` where there is no `forkserver`.

    A plain fork is unsafe in a process with threads of torch or CUDA: a lock that another thread holds stays
    locked for ever in the child. The fork server imports `module` once, and its children start in
    milliseconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload([module])
    return chosen


def quiet_worker(_number: int = 0) -> None:
    """Set up a worker: one torch thread, Ctrl-C is ignored, and the worker ends when its parent ends.

    A Ctrl-C reaches all processes of a terminal. Only the parent handles it, and then stops its workers.
    """
    torch.set_num_threads(1)  # the workers fill the cores already
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Start a thread that ends this process when its parent process has ended.

    Needed when the parent is killed: neither a process pool nor the fork server notices that, and their
    processes would stay.
    """

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)  # sys.exit would only end this thread

    threading.Thread(target=wait, daemon=True).start()
