"""What a run depends on: versions, libraries, decoder, GPUs, cores, memory and disk, and what to fix.

Only the standard library and `packaging` are imported in this process, because the others may be broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from noisystudent.doctor import disk, machine, packages
from noisystudent.doctor.findings import Finding
from noisystudent.errors import first_line

__all__ = ["Finding", "examine"]


def examine(folder: Path) -> Iterator[Finding]:
    """Findings about this machine and this installation.

    It raises no error: what cannot be measured on an odd machine is a finding that says so.

    Args:
        folder: working folder of runs. A temporary file of some MiB is written there, or, if it does not
            exist yet, in the folder where it would be made.
    """
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "system": machine.system,
        "packages": packages.packages,
        "libraries": packages.libraries,
        "cores": machine.cores,
        "memory": machine.memory,
        "shared memory": machine.shared_memory,
        "disk": lambda: disk.disk(folder),
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            yield Finding(name, f"unknown ({type(error).__name__}: {first_line(error)})")
