"""Parts of a folder that several processes make, each part once, started and ended at any time."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from noisystudent.console import Progress
from noisystudent.errors import RunError
from noisystudent.run.checksums import checksum
from noisystudent.run.files import publish, read_json, remove, sync_folder
from noisystudent.run.leases import Leases
from noisystudent.run.part_index import Files, read_joined
from noisystudent.run.rundir import IndexedDir

_POLL = 0.5  # seconds between two looks at parts that other processes make


class SharedParts:
    """One of the processes that make the parts of a folder. Use it as a context manager.

    A part is claimed by a lease and has one complete version: the first that was published stays. Its
    checksum is on disk before it, in an index of its process, so that every part that exists has one.

    All that a process writes is first in a folder of its own, in the folder of the parts. If that is moved
    away, because a run makes its stage anew from other inputs, the own folder moves along. So nothing can be
    published among parts of other inputs.

    Args:
        folder: folder of the parts, which exists.
        about: what the parts have in common, as JSON.
        check: raises KeyError, TypeError or ValueError for another `about`; see `read_indices`.
    """

    def __init__(
        self, folder: IndexedDir, about: Mapping[str, Any], check: Callable[[Mapping[str, Any]], object]
    ) -> None:
        self._folder, self._about, self._check = folder, about, check
        self._own, self._files = type(folder)(folder.shared / secrets.token_hex(8)), Files()
        self._leases = Leases(folder.shared)

    def __enter__(self) -> SharedParts:
        try:
            self._folder.shared.mkdir(exist_ok=True)
            self._own.path.mkdir()
        except OSError as error:
            raise self._error(error) from error
        self._leases.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leases.__exit__(kind, error, trace)
        if not self._files:
            shutil.rmtree(self._own.path, ignore_errors=True)  # it is temporary
            with suppress(OSError):  # others need it
                self._folder.shared.rmdir()

    def claim(self, part: Path) -> bool:
        """Return True if this process shall make a part: it does not exist, and no living process makes it.

        Raises:
            RunError: the lease cannot be written.
        """
        if part.exists() or not self._own.path.is_dir():  # moved away: no leases among parts of other inputs
            return False
        if not self._leases.claim(part.stem):
            return False
        if part.exists():  # it was published before the lease could be taken
            self._leases.end(part.stem)
            return False
        return True

    def publish(self, part: Path, write: Callable[[Path], object]) -> None:
        """Make a claimed part appear, complete and with its checksum, unless another process was faster.

        Args:
            part: path of the part.
            write: writes it to a given path.

        Raises:
            RunError: the disk is full, or the folder was moved away.
        """
        partial = self._own.path / part.name
        try:
            write(partial)
            self._files[part.name] = checksum(partial)
            self._write(self._own.index, self._files)
            publish(partial, part)
        except OSError as error:
            with suppress(OSError):  # it may be as forbidden as the writing of it
                remove(partial)
            # If all parts were made by others in the meantime, one of them has deleted the own folder.
            if not (isinstance(error, FileNotFoundError) and part.exists()):
                raise self._error(error) from error
        self._leases.end(part.stem)

    def wait(self, part: Path, progress: Progress) -> None:
        """Wait a moment for a part that another process makes.

        Raises:
            RunError: the folder was moved away.
            Stopped: a signal came.
        """
        progress.check()
        time.sleep(_POLL)
        if not self._own.path.is_dir() and not part.exists():  # in this order: it is deleted after all parts
            raise self._error(FileNotFoundError())

    def finish(self, parts: Iterable[Path]) -> None:
        """Write parts.json and delete all that is temporary. All parts exist; any process may call it.

        Raises:
            RunError: the checksum of a part was lost, the disk is full, or the folder was moved away.
        """
        joined = read_joined(self._folder, self._check)
        names = sorted(part.name for part in parts)
        for name in names:
            if name not in joined.files:
                raise RunError(
                    f"{self._folder.path / name} has lost its checksum; run the same command again"
                )
        try:
            self._write(self._folder.index, {name: joined.files[name] for name in names})
        except OSError as error:
            # Another process that found all parts has deleted the own folder, after it had written the same.
            if not isinstance(error, FileNotFoundError) or set(names) - _written(self._folder.index):
                raise self._error(error) from error
        shutil.rmtree(self._folder.shared, ignore_errors=True)  # another process may be deleting it, too

    def _write(self, index: Path, files: Files) -> None:
        """Write an index by way of the own folder."""
        new = self._own.path / "new.json"
        content = {**self._about, "files": dict(sorted(files.items()))}
        new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        sync_folder(new)
        os.replace(new, index)
        sync_folder(index.parent)

    def _error(self, error: OSError) -> RunError:
        if isinstance(error, FileNotFoundError):
            return RunError(
                f"{self._folder.path} was moved away: its run has other inputs; run the same command again"
            )
        return RunError(f"cannot write {self._folder.path}: {error.strerror or error}")


def _written(index: Path) -> set[str]:
    """Names of the parts in an index."""
    return set(read_json(index)["files"]) if index.is_file() else set()
