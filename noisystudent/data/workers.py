"""Processes that decode: how many, and how they start without inheriting torch's threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.context import BaseContext

import torch


def worker_count(workers: int | None) -> int:
    """`None` is one a core this process may use."""
    if workers is not None:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def context(module: str = "noisystudent.data.loader") -> BaseContext:
    """A start method that is safe beside torch's and CUDA's threads, which a plain fork is not.

    The fork server imports `module` once; its children start in milliseconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload([module])
    return chosen


def quiet_worker(_number: int = 0) -> None:
    """One thread, and Ctrl-C left to the parent, which ends its workers in order, or by its own death."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Neither a pool of processes nor the fork server notices that its owner was killed: end this then."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
