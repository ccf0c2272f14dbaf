"""Free space and speed of the disk of a folder."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from noisystudent.doctor.findings import Finding
from noisystudent.errors import readable_size

_BLOCK, _BLOCKS = 2**20, 16  # bytes, and number of blocks: a file of 16 MiB
_LEAST_FREE = 2**30  # bytes; models, snapshots and pseudo-labels of a small run


def disk(folder: Path) -> Iterator[Finding]:
    """Free space, and the speed at which a file of 16 MiB reaches the disk. The file is removed."""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    try:
        speed = f"{_write_speed(existing):,.0f} MB/s written"
    except OSError as error:
        reason = error.strerror or str(error)
        yield Finding("disk", f"{existing} cannot be written: {reason}", "run in another folder")
        return
    fix = "free some space, or run in another folder" if free < _LEAST_FREE else ""
    yield Finding("disk", f"{readable_size(free)} free, {speed}, {existing}", fix)


def _write_speed(folder: Path) -> float:
    """Speed in MB per second."""
    block = os.urandom(_BLOCK)  # a file system may compress what repeats
    with tempfile.TemporaryFile(dir=folder, prefix=".noisystudent-", buffering=0) as file:
        started = time.perf_counter()
        for _ in range(_BLOCKS):
            file.write(block)
        os.fsync(file.fileno())
        return _BLOCK * _BLOCKS / 1e6 / (time.perf_counter() - started)
