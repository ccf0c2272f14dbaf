"""Moves files of a run to `superseded/` in its folder, each to a place that is free."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from noisystudent.errors import RunError
from noisystudent.run.files import sync_folder
from noisystudent.run.lock import owns
from noisystudent.run.rundir import RunDir


def put_aside(path: Path) -> Path:
    """Move a damaged file or folder to `superseded/damaged/` of its run, and return its new path.

    Raises:
        RunError: it cannot be moved.
    """
    run = run_folder(path)
    target = free_folder(RunDir(run).damaged, [path.relative_to(run)]) / path.relative_to(run)
    move(path, target)
    return target


def run_folder(path: Path) -> Path:
    """Return the nearest parent folder that this process has locked; if there is none, the direct parent."""
    return next(filter(owns, path.parents), path.parent)


def named(path: Path) -> str:
    """Path relative to the run if this process has locked it, otherwise the name of the file."""
    return path.relative_to(run_folder(path)).as_posix()


def free_folder(folder: Path, names: Iterable[Path]) -> Path:
    """Return `folder`, or with -2, -3, … appended the first in which none of the names exists."""
    target, number, names = folder, 1, list(names)
    while any((target / name).exists() for name in names):
        number += 1
        target = folder.with_name(f"{folder.name}-{number}")
    return target


def move(source: Path, target: Path) -> None:
    """Rename a file or folder, so that it survives a power failure under one of the two names.

    Raises:
        RunError: it cannot be moved.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        sync_folder(target.parent)  # first: after a power failure both names may exist, but not none
        sync_folder(source.parent)
    except OSError as error:
        raise RunError(f"cannot move {source} to {target}: {error.strerror or error}") from error
