"""Memory of this process: the most that it used in a block, and how much it can still take."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from noisystudent import cgroups

_EVERY = 0.002  # seconds between two readings on a CPU; a step is longer


@dataclass(slots=True)
class Peak:
    """Most bytes of a device that this process used in a block, also for what was there before the block."""

    used: int = 0


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Measure the memory in use within the block: of a GPU, or of this process on Linux; elsewhere it is 0.

    Memory that was freed before the block does not count. Decoding processes are not measured.
    """
    measured = Peak()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        yield measured
        measured.used = torch.cuda.max_memory_reserved(device)
        return
    _return_freed_memory()
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(_EVERY):
            measured.used = max(measured.used, used(device))

    reader = threading.Thread(target=read, name="peak memory", daemon=True)
    measured.used = used(device)
    reader.start()
    try:
        yield measured
    finally:
        ended.set()
        reader.join()


def used(device: torch.device) -> int:
    """Bytes of a device that this process uses; on a CPU without mapped files. 0 where it is not known."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    try:
        _, resident, shared, *_ = (cgroups.PROC / "self" / "statm").read_text(encoding="ascii").split()
    except OSError:  # not Linux
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def free(device: torch.device) -> int | None:
    """Bytes of a device that this process can still take; None where it is not known.

    On a CPU this is the least of what the machine has (MemAvailable) and what each control group of the
    process leaves, as in a container or a job of a scheduler.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    of_groups = (left for _, left in cgroups.memory(proc=cgroups.PROC, root=cgroups.GROUPS))
    return min((*_of_machine(), *of_groups), default=None)


def limit(device: torch.device) -> int | None:
    """Bytes of a device that this process can use in all; None where it is not known."""
    left = free(device)
    return None if left is None else used(device) + left


def _of_machine() -> Iterator[int]:
    try:
        lines = (cgroups.PROC / "meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            yield 1024 * int(amount.split()[0])


def _return_freed_memory() -> None:
    """Return freed memory to the system if the C library is glibc: `runtime` makes it keep that."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
