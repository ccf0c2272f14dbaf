"""Locks a run directory, so that only one process writes into it, and protects the folders of the user."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from noisystudent.distributed import group
from noisystudent.errors import InputError

MARKER = ".noisystudent"
"""Name of the file that marks a folder of this program. A folder without it is used only if it is empty."""

_MARKER_BYTES = 512  # a marker is shorter; the name of a host has at most 255 bytes
_TRIES, _PAUSE = 100, 0.01  # seconds; a look of `is_locked` holds the lock for microseconds


class Owner(NamedTuple):
    """Process that locked a folder and has not released it in order.

    Attributes:
        process: its number.
        host: name of its machine.
    """

    process: str
    host: str


_owned: set[Path] = set()  # folders this process has locked


def owns(folder: Path) -> bool:
    """Return True if this process has locked `folder`."""
    return Path(os.path.realpath(folder)) in _owned


@contextmanager
def lock(folder: Path, kind: str = "run", *, shared: bool = False) -> Iterator[None]:
    """Lock `folder` during the block, for all processes of this run.

    It must be new, empty, or marked as a folder of this kind.

    The marker file is locked with flock. The kernel releases the lock when the process ends, so a killed run
    does not block the next one.

    Args:
        folder: made if it does not exist.
        kind: kind of the folder: "run", "check", "study", "ceilings" or "labelling". It is written into the
            marker file, and during the block the process and its host too.
        shared: lock it together with other processes that share it, and against all others.

    Raises:
        InputError: the folder holds other files, has another kind, is locked by another process, or cannot be
            written.
    """
    if not group().is_main:  # process 0 has the lock of the run
        yield
        return
    path = folder / MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_other_files(folder)
        # O_NOFOLLOW: a symbolic link of this name could lead to a file of the user, which would be emptied.
        held = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)]
    except OSError as error:
        raise InputError(f"--out {folder} cannot be used: {error.strerror}; choose another") from error

    def release() -> None:
        while held:
            os.close(held.pop())

    # A forked worker inherits the lock. If it outlived a killed run, it would keep the folder locked.
    os.register_at_fork(after_in_child=release)
    owner = Path(os.path.realpath(folder))  # `resolve` fails in a loop of links
    try:
        _acquire(held[0], folder, kind, shared=shared)
        _owned.add(owner)
        try:
            yield
        finally:
            _owned.discard(owner)
            if held:  # a forked process has closed it
                _sign_off(held[0], kind)
    finally:
        release()


def check_usable(folder: Path) -> None:
    """Check that a run can use a folder, before time is spent on its plan. A new folder is not kept.

    Raises:
        InputError: as `lock` raises it.
    """
    new = not folder.exists()
    with lock(folder):
        if new:
            (folder / MARKER).unlink()
    if new:
        with suppress(OSError):  # another process has begun to use it
            folder.rmdir()


def is_locked(folder: Path) -> bool:
    """Return True if a process holds the lock of `folder`: a run, a check or an ablation works in it."""
    try:
        descriptor = os.open(folder / MARKER, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # no marker: nothing was ever locked here
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)  # also releases the lock
    return False


def owner_of(folder: Path) -> Owner | None:
    """Return the process that has locked `folder` without releasing it: it is at work, or it was killed.

    None: there is no such process, or it was of a version that did not write its host.
    """
    try:
        descriptor = os.open(folder / MARKER, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        _, *process = _read(descriptor) or [""]
    finally:
        os.close(descriptor)
    return Owner(*process) if len(process) == len(Owner._fields) else None


def _refuse_other_files(folder: Path) -> None:
    """Raise InputError if the folder has no marker but holds files: they belong to the user."""
    names = sorted(entry.name for entry in os.scandir(folder))
    if names and MARKER not in names:
        few = ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")
        raise InputError(
            f"--out {folder} holds files that are not of a run ({few}); choose a new or an empty folder"
        )


def _acquire(descriptor: int, folder: Path, kind: str, *, shared: bool) -> None:
    """Lock the marker file, check its kind, and write `<kind> <process id> <host>` into it."""
    try:
        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        _take(descriptor, how | fcntl.LOCK_NB)  # NB: fail instead of waiting without end
        before = _read(descriptor)
        if before and before[0] != kind:
            raise InputError(
                f"--out {folder} is the folder of a {before[0]}, not of a {kind}; choose another"
            )
        _write(descriptor, f"{kind} {os.getpid()} {socket.gethostname()}\n")
    except BlockingIOError as error:
        process = next(iter(_read(descriptor)[1:]), "unknown")
        raise InputError(f"--out {folder} is in use by process {process}; choose another --out") from error
    except OSError as error:
        raise InputError(f"--out {folder} cannot be locked ({error.strerror}); choose another") from error


def _take(descriptor: int, how: int) -> None:
    """Lock the marker file. A process that only looks at the folder is gone at one of the next tries.

    Raises:
        BlockingIOError: another process has the lock for a second.
    """
    for _ in range(_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, how)
            return
        time.sleep(_PAUSE)
    fcntl.flock(descriptor, how)


def _sign_off(descriptor: int, kind: str) -> None:
    """Remove the process from the marker: what is left there after a kill shows that there was one."""
    with suppress(OSError):  # a disk that is lost by now; the error of the block says so, not this one
        _write(descriptor, f"{kind}\n")


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _read(descriptor: int) -> list[str]:
    """Return [kind, process id, host] from a marker file; the last two only while a process works in it.

    The list is empty if the marker was never filled.
    """
    return os.pread(descriptor, _MARKER_BYTES, 0).decode(errors="replace").split()
