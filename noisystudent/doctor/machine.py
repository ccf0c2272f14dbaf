"""The system, and the cores and the memory that this process may use, also in a container."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from noisystudent import cgroups
from noisystudent.cgroups import GROUPS, PROC
from noisystudent.doctor.findings import Finding
from noisystudent.errors import readable_size

_LEAST_MEMORY = 2**31  # bytes: torch and its libraries take a quarter of it in each process
_LEAST_SHARED = 2**28  # bytes: some batches of 224 pixels; Docker gives 64 MiB
_SHARED = Path("/dev/shm")


def system() -> Iterator[Finding]:
    """The operating system and the version of Python."""
    yield Finding("system", platform.platform())
    yield Finding("Python", f"{platform.python_version()}, {sys.executable}")


def cores() -> Iterator[Finding]:
    """The cores of this process. More threads than cores wait for each other."""
    usable, allowed, threads = cgroups.cores(), cgroups.quota(), os.environ.get("OMP_NUM_THREADS")
    value = f"{usable} of {os.cpu_count()}" + ("" if threads is None else f", OMP_NUM_THREADS={threads}")
    if allowed is None or allowed >= usable:
        yield Finding("cores", value)
        return
    few = cgroups.usable_cores()
    fits = threads is not None and threads.isdecimal() and int(threads) <= few
    fix = "" if fits else f"set OMP_NUM_THREADS={few}"
    yield Finding("cores", f"{value}, but a control group allows the time of {allowed:g}", fix)


def memory(*, proc: Path = PROC, root: Path = GROUPS) -> Iterator[Finding]:
    """The memory of this process: that of the machine, or the limit of its control groups."""
    info = proc / "meminfo"
    if not info.is_file():  # macOS
        yield Finding("memory", readable_size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
        return
    kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in info.read_text().splitlines()}
    total, free = kibibytes["MemTotal"] * 1024, kibibytes["MemAvailable"] * 1024
    where = "of the machine"
    for limit, left in cgroups.memory(proc=proc, root=root):
        if limit < total:
            total, where, free = limit, "that a control group allows", min(free, left)
    fix = "end other programs, or give the container more memory" if free < _LEAST_MEMORY else ""
    yield Finding("memory", f"{readable_size(free)} free of {readable_size(total)} {where}", fix)


def shared_memory(folder: Path = _SHARED) -> Iterator[Finding]:
    """The memory in which decoding processes hand over images."""
    if folder.is_dir():
        free = shutil.disk_usage(folder).free
        fix = "give the container more: docker run --shm-size 2g" if free < _LEAST_SHARED else ""
        yield Finding("shared memory", f"{readable_size(free)} free in {folder}", fix)
