"""What the control groups of this process allow, as in a container or a job of a scheduler."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
"""Where the kernel describes processes, and where the groups are mounted."""

# Controller, limit, use, and the name of the file cache in memory.stat, of version 2 and 1.
_MEMORY = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def groups(controller: str, *, proc: Path, root: Path) -> list[Path]:
    """Folders of the group of this process and of all groups around it, the innermost first.

    Version 2 has one tree, and version 1 one for each controller. In a container the own group may be the
    root of the tree, whatever its path outside is.

    Args:
        controller: name of the controller of version 1; "" for version 2.
        proc, root: see `PROC` and `GROUPS`.
    """
    group = Path("/")
    membership = proc / "self" / "cgroup"
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = Path(path)
    inside = Path(*group.parts[1:])
    return list(dict.fromkeys(root / controller / part for part in (inside, *inside.parents)))


def words(controller: str, file: str, *, proc: Path, root: Path) -> list[list[str]]:
    """The words of a file of each of `groups` that has it, such as `cpu.max`."""
    contents: list[list[str]] = []
    for group in groups(controller, proc=proc, root=root):
        with suppress(OSError):  # the root has no limit, and a container need not show the others
            contents.append((group / file).read_text().split())
    return contents


def cores() -> int:
    """Number of cores that this process may use. `quota` may allow the time of fewer."""
    # cpu_count() also counts other cores; macOS has no sched_getaffinity
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores(processes: int = 1) -> int:
    """Number of cores that each of so many processes may use all the time, at least 1."""
    return max(1, int(min(cores(), quota() or math.inf)) // processes)


def quota(*, proc: Path = PROC, root: Path = GROUPS) -> float | None:
    """Cores' worth of time that the control groups allow; None: there is no limit."""
    shares = [(most[0], most[1]) for most in words("", "cpu.max", proc=proc, root=root)]
    of_v1 = (words("cpu", f"cpu.cfs_{part}_us", proc=proc, root=root) for part in ("quota", "period"))
    shares += [(given[0], period[0]) for given, period in zip(*of_v1, strict=True)]
    cores = [int(given) / int(period) for given, period in shares if given not in ("max", "-1")]
    return min(cores, default=None)


def memory(*, proc: Path, root: Path) -> Iterator[tuple[int, int]]:
    """Bytes of memory that each group with a limit allows, and those that are left of them, at least 0.

    Cached files count as used, and those that were not read lately make room when it is needed.
    """
    for controller, limit, use, cache in _MEMORY:
        for group in groups(controller, proc=proc, root=root):
            try:
                most = (group / limit).read_text().strip()
                used = int((group / use).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            except OSError:  # the root of version 2 has no limit, and a container need not show the others
                continue
            if most != "max":
                yield int(most), max(0, int(most) - used + int(stat.get(cache, 0)))
