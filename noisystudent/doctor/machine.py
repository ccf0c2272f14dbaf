"""The system, and the cores and the memory that this process may use, also in a container."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from noisystudent.doctor.findings import Finding
from noisystudent.errors import readable_size

_LEAST_MEMORY = 2**31  # bytes: torch and its libraries take a quarter of it in each process
_LEAST_SHARED = 2**28  # bytes: some batches of 224 pixels; Docker gives 64 MiB
_MEMORY_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
_PROC, _CGROUP, _SHARED = Path("/proc"), Path("/sys/fs/cgroup"), Path("/dev/shm")


def system() -> Iterator[Finding]:
    """The operating system and the version of Python."""
    yield Finding("system", platform.platform())
    yield Finding("Python", f"{platform.python_version()}, {sys.executable}")


def limits(name: str, *, proc: Path = _PROC, root: Path = _CGROUP) -> list[list[str]]:
    """The words of a cgroup file, such as `cpu.max`, of this process and of all groups around it.

    Version 2 has one tree, and version 1 one for each controller. In a container the own group may be the
    root of the tree, whatever its path outside is.

    Args:
        name: file of version 2, or `controller/file` of version 1.
        proc: where the kernel describes processes.
        root: where the groups are mounted.
    """
    controller, _, file = name.rpartition("/")
    group = Path("/")
    membership = proc / "self" / "cgroup"
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = Path(path)
    inner = [Path(*group.parts[1:]), *Path(*group.parts[1:]).parents]
    paths = dict.fromkeys(root / controller / part / file for part in inner)
    return [path.read_text().split() for path in paths if path.is_file()]


def quota(*, proc: Path = _PROC, root: Path = _CGROUP) -> float | None:
    """Cores' worth of time that the control groups allow; None: there is no limit."""
    shares = [(words[0], words[1]) for words in limits("cpu.max", proc=proc, root=root)]
    of_v1 = (limits(f"cpu/cpu.cfs_{part}_us", proc=proc, root=root) for part in ("quota", "period"))
    shares += [(given[0], period[0]) for given, period in zip(*of_v1, strict=True)]
    cores = [int(given) / int(period) for given, period in shares if given not in ("max", "-1")]
    return min(cores, default=None)


def cores() -> Iterator[Finding]:
    """The cores of this process. More threads than cores wait for each other."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed, threads = quota(), os.environ.get("OMP_NUM_THREADS")
    value = f"{usable} of {os.cpu_count()}" + ("" if threads is None else f", OMP_NUM_THREADS={threads}")
    if allowed is None or allowed >= usable:
        yield Finding("cores", value)
        return
    few = max(1, int(allowed))
    fits = threads is not None and threads.isdecimal() and int(threads) <= few
    fix = "" if fits else f"set OMP_NUM_THREADS={few}, and give --data.workers {few}"
    yield Finding("cores", f"{value}, but a control group allows the time of {allowed:g}", fix)


def memory(*, proc: Path = _PROC, root: Path = _CGROUP) -> Iterator[Finding]:
    """The memory of this process: that of the machine, or the limit of its control groups."""
    info = proc / "meminfo"
    if not info.is_file():  # macOS
        yield Finding("memory", readable_size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
        return
    kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in info.read_text().splitlines()}
    total, free = kibibytes["MemTotal"] * 1024, kibibytes["MemAvailable"] * 1024
    where = "of the machine"
    for names in _MEMORY_FILES:
        groups = (limits(name, proc=proc, root=root) for name in names)
        for (limit, *_), (used, *_), stat in zip(*groups, strict=False):  # the root of version 2 has no limit
            if limit != "max" and int(limit) < total:
                total, where = int(limit), "that a control group allows"
                # Cached files count as used, and those that were not read lately make room when it is needed.
                cached = dict(pairwise(stat)).get(f"{'total_' if '/' in names[0] else ''}inactive_file", "0")
                free = min(free, total - int(used) + int(cached))
    fix = "end other programs, or give the container more memory" if free < _LEAST_MEMORY else ""
    yield Finding("memory", f"{readable_size(free)} free of {readable_size(total)} {where}", fix)


def shared_memory(folder: Path = _SHARED) -> Iterator[Finding]:
    """The memory in which decoding processes hand over images."""
    if folder.is_dir():
        free = shutil.disk_usage(folder).free
        fix = "give the container more: docker run --shm-size 2g" if free < _LEAST_SHARED else ""
        yield Finding("shared memory", f"{readable_size(free)} free in {folder}", fix)
