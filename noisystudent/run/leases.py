"""Leases: which of several processes, on machines that share a disk, works on a unit of work."""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from types import TracebackType

from noisystudent.console import Progress
from noisystudent.errors import RunError
from noisystudent.run.files import remove

BEAT = 5.0
"""Seconds between two signs of life of a process that holds leases."""
_POLL = 0.2  # seconds between two attempts to have a unit
_BEATS = 12  # without a sign of life after which the process counts as dead
_RELEASED = (0, 0)  # access and modification time of a lease that was given back


class Leases:
    """The leases that this process takes in a folder. Use it as a context manager: its end gives them back.

    The first lease of a unit is the file `<unit>.0`, which only one process can make (O_EXCL). While it
    works, a thread renews the file's modification time. If the time is too old, or if the process was on this
    machine and is gone, another one takes the unit by making `<unit>.1`, and so on. Nothing is renamed or
    deleted: of several processes that find a lease dead one takes the unit, also if some of them act late.

    Times are those of the file system: an age is compared with a file of this process, never with a clock. A
    process that was only suspended may lose a unit, and not know it. So a unit must give the same result when
    two processes work on it, and its result must appear at once.

    Args:
        folder: made with the first lease; its parent must exist.
        beat: seconds between two signs of life. It must be equal for all processes.
    """

    def __init__(self, folder: Path, *, beat: float = BEAT) -> None:
        self._folder, self._beat = folder, beat
        self._clock = folder / f".{secrets.token_hex(8)}"
        self._held: dict[str, Path] = {}
        self._newest: dict[str, int] = {}  # number of the newest lease that was seen of each unit
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Leases:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        for unit in list(self._held):
            self.release(unit)
        remove(self._clock)

    def claim(self, unit: str) -> bool:
        """Take a unit, unless a living process has it. The caller looks whether it was done in the meantime.

        Args:
            unit: name of the unit, valid as a file name.

        Raises:
            RunError: the lease cannot be written.
        """
        try:
            self._folder.mkdir(exist_ok=True)
            for number in count(self._number(unit)):
                path = self._lease(unit, number)
                if self._make(path):
                    with self._lock:
                        self._held[unit] = path
                    return True
                if self._lives(path):
                    return False
        except FileNotFoundError:  # all units are done, and the folder was deleted; or it was moved away
            return False
        except OSError as error:
            raise RunError(f"cannot write {self._folder}: {error.strerror or error}") from error
        raise AssertionError  # `count` has no end

    def is_free(self, unit: str) -> bool:
        """False if a living process has a unit. Each claim leaves a file; this leaves none.

        Raises:
            RunError: the lease cannot be read.
        """
        try:
            return not self._lives(self._lease(unit, self._number(unit)))
        except FileNotFoundError:  # there is none yet
            return True
        except OSError as error:
            raise RunError(f"cannot read {self._folder}: {error.strerror or error}") from error

    def release(self, unit: str) -> None:
        """Give a unit back before it is done: any process may take it at once."""
        with self._lock, suppress(FileNotFoundError):  # see `claim`
            os.utime(self._held.pop(unit), _RELEASED)

    def end(self, unit: str) -> None:
        """Stop renewing the lease of a unit that is done.

        It ends only some time later. Until then other machines see the result, which NFS may hide from them
        for a minute.
        """
        with self._lock:
            del self._held[unit]

    @contextmanager
    def hold(self, unit: str, progress: Progress) -> Iterator[None]:
        """Have a unit during the block, after waiting for it if need be.

        Raises:
            RunError: the lease cannot be written.
            Stopped: a signal came.
        """
        while not self.claim(unit):
            progress.check()
            time.sleep(_POLL)
        try:
            yield
        finally:
            self.release(unit)

    def now(self) -> float:
        """Time of the file system in seconds: that of a file that is written now. It needs a lease before."""
        self._clock.touch()
        return self._clock.stat().st_mtime

    def _lease(self, unit: str, number: int) -> Path:
        return self._folder / f"{unit}.{number}"

    def _number(self, unit: str) -> int:
        """Number of the newest lease of a unit, 0 if there is none. The earlier ones have ended."""
        number = self._newest.get(unit, 0)
        if not self._lease(unit, number).exists():  # also in a folder that was made anew
            number = 0
        while self._lease(unit, number + 1).exists():
            number += 1
        self._newest[unit] = number
        return number

    def _make(self, path: Path) -> bool:
        """Make a lease of this process; False if the file exists."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        about = {"host": platform.node(), "process": os.getpid(), "processes": _processes()}
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(about, file)
        return True

    def _lives(self, path: Path) -> bool:
        """False if the lease was given back, or its process is dead."""
        with path.open(encoding="utf-8") as file:  # NFS asks for the time when a file is opened
            modified, text = os.fstat(file.fileno()).st_mtime, file.read()
        if modified == _RELEASED[1] or _is_gone(text):
            return False
        return self.now() - modified < _BEATS * self._beat

    def _renew(self) -> None:
        while not self._ended.wait(self._beat):
            # With the lock, so that a lease that is given back is not renewed. An error of the disk may pass;
            # if it lasts, another process takes the unit.
            with self._lock:
                for path in self._held.values():
                    with suppress(OSError):
                        os.utime(path)


def _is_gone(text: str) -> bool:
    """True if a lease names a process of this machine that has ended."""
    try:
        about = json.loads(text)
        process, processes = int(about["process"]), about["processes"]
    except (ValueError, TypeError, KeyError):  # it is being written, or was when the process died
        return False
    if processes != _processes():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        return False
    return False


@cache
def _processes() -> str:
    """Name of what gives the process ids here: a machine since its start, or a container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return platform.node()
