"""Sharing of finished stages between runs: one run makes a stage, the others copy or hard-link its files."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from noisystudent.errors import RunError
from noisystudent.run.files import atomic, remove
from noisystudent.run.record import read_record, write_record
from noisystudent.run.rundir import RECORD
from noisystudent.run.stages import Stage, Status, state, supersede


class _SourceMoved(Exception):
    """The run that has the stage is moving its files away."""


def find(stage: Stage, run: Path, others: Iterable[Path]) -> Stage | None:
    """Return the finished `stage` of the run directory `run`, otherwise that of the first of `others`.

    Args:
        stage: a stage of `run`.
        run: run directory.
        others: other run directories; `run` among them is skipped.

    Returns:
        The stage with the paths where it is finished; None if no run has it.
    """
    places = (_in_other_run(stage, run, other) for other in others if other != run)
    return next((place for place in (stage, *places) if _done(place)), None)


def take_over(stage: Stage, run: Path, others: Iterable[Path]) -> Path | None:
    """Copy a stage that is not done in `run` from another run that has it with the same name and fingerprint.

    Files are hard links if the file system supports them, otherwise copies. Links are safe, because no stage
    changes the files of a finished stage; it writes new ones. If the call is killed, the stage does not count
    as done. Files made from other inputs are moved away as in `run_stage`. An interrupted attempt from the
    same inputs is deleted. The caller must have locked `run`.

    Args:
        stage: the stage of `run` to fill.
        run: run directory.
        others: run directories to copy from; the first that has the stage is used.

    Returns:
        The run directory that the stage was copied from. None if `run` has the stage already, or if no other
        run has it.

    Raises:
        RunError: the files cannot be written.
    """
    remove(_aside(stage))
    source = find(stage, run, others)
    if source is None or source == stage:
        return None
    if state(stage).status is Status.STALE:
        supersede(stage)
    try:
        if stage.path.suffix:
            _take_files(source, stage)
        else:
            _take_folder(source, stage)
    except _SourceMoved:
        return None  # the caller makes the stage itself
    except OSError as error:
        raise RunError(f"cannot copy {source.path} to {stage.path}: {error.strerror or error}") from error
    # The path of the other run without the part that both stages have in common.
    return source.path.parents[len(stage.path.relative_to(run).parts) - 1]


def _in_other_run(stage: Stage, run: Path, other: Path) -> Stage:
    """Return the same stage with its paths in the run directory `other`."""
    also = tuple(other / path.relative_to(run) for path in stage.also)
    return dataclasses.replace(stage, path=other / stage.path.relative_to(run), also=also)


def _done(stage: Stage) -> bool:
    # Damage is reported when the run of the stage is started.
    return state(stage, contents=True).status is Status.DONE


def _take_folder(source: Stage, target: Stage) -> None:
    """Copy a folder with its record, so that it is either complete or absent."""
    # `atomic` deletes an older folder file by file. A kill in between would leave files without a record,
    # so the older folder is renamed first, which is one operation.
    if target.path.exists():
        os.rename(target.path, _aside(target))
    with atomic(target.path) as partial:
        _link_tree(source.path, partial)
    remove(_aside(target))


def _aside(stage: Stage) -> Path:
    """Return the path of an interrupted attempt until it is replaced."""
    return stage.path.with_name(f".{stage.path.name}.old.partial")


def _take_files(source: Stage, target: Stage) -> None:
    """Copy a file with its record. The record is written first as running and last as done.

    So a kill in between leaves a stage that counts as interrupted.
    """
    content = read_record(source.record)
    if content is None:
        raise _SourceMoved
    write_record(target.record, content | {"status": "running"})
    for original, copy in zip(source.pieces, target.pieces, strict=True):
        if copy.exists() and original.exists() and copy.samefile(original):
            # POSIX: renaming a hard link onto the same file does nothing, so the temporary name would remain.
            continue
        with atomic(copy) as partial:
            _link(original, partial)


def _link_tree(source: Path, target: Path) -> None:
    target.mkdir()
    try:
        entries = sorted(os.scandir(source), key=lambda entry: entry.name)
    except FileNotFoundError as error:
        raise _SourceMoved from error
    for entry in entries:
        if entry.is_dir():
            # A folder with a record is a stage of its own, which may be running now.
            if not Path(entry.path, RECORD).exists():
                _link_tree(Path(entry.path), target / entry.name)
        elif not (entry.name.startswith(".") and entry.name.endswith(".partial")):
            _link(Path(entry.path), target / entry.name)


def _link(source: Path, target: Path) -> None:
    try:
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:  # the other run is on another file system, or there are no hard links
            shutil.copy2(source, target)
    except FileNotFoundError as error:
        raise _SourceMoved from error
