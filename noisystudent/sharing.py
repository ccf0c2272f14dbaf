"""Stages that several runs have in common: what one of them has made is taken over by the others."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from noisystudent import rundir
from noisystudent.errors import RunError
from noisystudent.stages import Stage, Status, state, supersede

_RECORD = "stage.json"


class _Gone(Exception):
    """What was to be taken over is being moved away."""


def find(stage: Stage, run: Path, others: Iterable[Path]) -> Stage | None:
    """Where `stage` of the run directory `run` is done: there, else in the first of `others` that has it."""
    places = (_of(stage, run, other) for other in others if other != run)
    return next((place for place in (stage, *places) if _done(place)), None)


def take_over(stage: Stage, run: Path, others: Iterable[Path]) -> Path | None:
    """Have `stage` here too where it is not done, but in another run with the same name and fingerprint.

    Files are hard links where the file system has them, else copies: every stage writes files anew and never
    into those of a finished one. Killed at any moment, nothing that is half there counts as done. What other
    inputs made is put away as `run_stage` does; an interrupted attempt at the same is dropped. Own `run`.

    Returns:
        The run it comes from; None where there was nothing to take.

    Raises:
        RunError: a stage.json is damaged, or the disk refuses.
    """
    rundir.remove(_aside(stage))
    found = find(stage, run, others)
    if found is None or found == stage:
        return None
    if state(stage).status is Status.STALE:
        supersede(stage)
    try:
        if stage.path.suffix:
            _take_files(found, stage)
        else:
            _take_folder(found, stage)
    except _Gone:
        return None  # then this run makes its own
    except OSError as error:
        raise RunError(f"cannot take {found.path} over to {stage.path}: {error.strerror or error}") from error
    return found.path.parents[len(stage.path.relative_to(run).parts) - 1]


def _of(stage: Stage, run: Path, other: Path) -> Stage:
    """The same stage in another run directory."""
    also = tuple(other / path.relative_to(run) for path in stage.also)
    return dataclasses.replace(stage, path=other / stage.path.relative_to(run), also=also)


def _done(stage: Stage) -> bool:
    try:
        return state(stage).status is Status.DONE
    except RunError:  # damaged: for its own run to say
        return False


def _take_folder(source: Stage, target: Stage) -> None:
    """The record is in the folder, which appears whole; what stood in its place is moved aside before."""
    if target.path.exists():
        os.rename(target.path, _aside(target))
    with rundir.atomic(target.path) as partial:
        _link_tree(source.path, partial)
    rundir.remove(_aside(target))


def _aside(stage: Stage) -> Path:
    """Where an interrupted attempt is until it is replaced."""
    return stage.path.with_name(f".{stage.path.name}.old.partial")


def _take_files(source: Stage, target: Stage) -> None:
    """The record comes first, saying that this is under way, and last, saying that it is done."""
    try:
        content = rundir.read_json(source.record)
    except FileNotFoundError as error:
        raise _Gone from error
    rundir.write_json(target.record, content | {"status": "running"})
    for theirs, ours in zip(source.pieces, target.pieces, strict=True):
        if ours.exists() and theirs.exists() and ours.samefile(theirs):
            continue  # a rename onto itself does nothing, and would leave the other name behind
        with rundir.atomic(ours) as partial:
            _link(theirs, partial)


def _link_tree(source: Path, target: Path) -> None:
    target.mkdir()
    try:
        entries = sorted(os.scandir(source), key=lambda entry: entry.name)
    except FileNotFoundError as error:
        raise _Gone from error
    for entry in entries:
        if entry.is_dir():
            if not Path(entry.path, _RECORD).exists():  # else a stage of its own, perhaps being written
                _link_tree(Path(entry.path), target / entry.name)
        elif not (entry.name.startswith(".") and entry.name.endswith(".partial")):
            _link(Path(entry.path), target / entry.name)


def _link(source: Path, target: Path) -> None:
    try:
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or one without hard links
            shutil.copy2(source, target)
    except FileNotFoundError as error:
        raise _Gone from error
