"""A stage of a run: its inputs, its status on disk, and running it again if the inputs have changed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from noisystudent.console import Progress
from noisystudent.errors import RunError
from noisystudent.run.files import read_json, remove, sync_folder, write_json
from noisystudent.run.lock import owns
from noisystudent.run.rundir import RECORD, RunDir

Facts = dict[str, Any]
"""Content that can be written as a JSON object."""

# Takes the place of the fingerprint in superseded/ for files without a record.
_NO_RECORD = "unrecorded"


class Status(StrEnum):
    """Status of a stage on disk.

    done: it is complete. partial: it was started with the same inputs and interrupted. stale: its files were
    made from other inputs. absent: it was not started.
    """

    DONE = "done"
    PARTIAL = "partial"
    STALE = "stale"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class State:
    """Status of a stage, and the names of the inputs that differ if it is stale."""

    status: Status
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a run.

    Attributes:
        name: unique in the run, and valid as a file name.
        path: output of the stage: a file if the path has a suffix, otherwise a folder.
        fingerprint: SHA-256 of the name and of all inputs that the output depends on.
        inputs: name of each input -> its digest. They give the reason when the stage must run again.
        also: further output files, if `path` is a file; they are moved together with it.
    """

    name: str
    path: Path
    fingerprint: str
    inputs: Mapping[str, str]
    also: tuple[Path, ...] = ()

    @property
    def record(self) -> Path:
        """Path of the record: stage.json in the folder, or <stem>.stage.json beside the file."""
        return self.path.with_suffix(f".{RECORD}") if self.path.suffix else self.path / RECORD

    @property
    def pieces(self) -> tuple[Path, ...]:
        """Paths that are moved together.

        The record is last, so that the files of a stage can still be identified if a move is interrupted.
        """
        return (self.path, *self.also, *((self.record,) if self.path.suffix else ()))


def fingerprint(*parts: object) -> str:
    """Return the SHA-256, in hex, of dataclasses, mappings, sequences, paths, strings and numbers.

    Equal values have equal digests: the order of keys does not matter, a list equals a tuple, 1.0 equals 1.

    Raises:
        TypeError: a part has no canonical form.
        ValueError: a number is not finite.
    """
    text = json.dumps(_canonical(parts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _canonical(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"keys of a fingerprinted mapping are strings, not {list(value)!r}")
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, np.generic):
        return _canonical(value.item())
    if isinstance(value, float) and value.is_integer():
        return int(value)  # `10` in a recipe and `10.0` on the command line are the same value
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be fingerprinted")


def state(stage: Stage) -> State:
    """Return the state of `stage` on disk, without changing anything.

    Raises:
        RunError: the record of the stage is damaged.
    """
    record = read_record(stage.record)
    if record is None:
        # Nothing proves that files without a record belong to this stage, so they are not used. They may be
        # of the user, so they are not deleted either: `run_stage` moves them away.
        unknown = any(_filled(piece) for piece in stage.pieces)
        return State(Status.STALE, (_NO_RECORD,)) if unknown else State(Status.ABSENT)
    if record["fingerprint"] == stage.fingerprint:
        finished = record["status"] == "done" and all(piece.exists() for piece in stage.pieces)
        return State(Status.DONE if finished else Status.PARTIAL)
    # Both sets of names: an input may be new, or may not exist any more.
    names = sorted(record["inputs"].keys() | stage.inputs.keys())
    changed = tuple(name for name in names if record["inputs"].get(name) != stage.inputs.get(name))
    # Equal inputs but another fingerprint: only the format number of `graph` can differ.
    return State(Status.STALE, changed or ("stage format",))


def run_stage(stage: Stage, work: Callable[[], Facts | None], progress: Progress) -> Facts | None:
    """Run `stage` unless it is done.

    Files made from other inputs are moved to `superseded/` in the run directory. They are moved back when the
    inputs are the old ones again. `work` is called if the stage is absent or partial; it must resume a
    partial stage itself. If the call is killed at any moment, the next call continues from there.

    Args:
        stage: the stage to run.
        work: makes `stage.path`. Its result is stored in the record, so it must be JSON or None.
        progress: receives a line for each thing that is done or skipped.

    Returns:
        The result of `work`, from this call or from the earlier call that finished the stage.

    Raises:
        RunError: the record is damaged, `work` did not make `stage.path`, or the disk is full.
    """
    current = state(stage)
    if current.status is Status.STALE:
        why = ", ".join(current.changed)
        progress.say(f"{stage.name}: made from other inputs ({why}); moved to {supersede(stage)}")
    # After `supersede`, so that the place is free when an older version is moved back.
    if current.status is not Status.DONE and _restore(stage):
        progress.say(f"{stage.name}: moved back from superseded/")
    status = state(stage).status  # read again: a restored stage may be done or partial
    if status is Status.DONE:
        progress.say(f"{stage.name}: done before, skipped")
    else:
        if status is Status.PARTIAL:
            progress.say(f"{stage.name}: interrupted before, resumed")
        _perform(stage, work)
    return (read_record(stage.record) or {}).get("result")


def _perform(stage: Stage, work: Callable[[], Facts | None]) -> None:
    # Written before the work: after a kill, the files can then be identified as a partial stage.
    _write_record(stage, "running")
    begun = time.monotonic()
    result = work()
    if not stage.path.exists():
        raise RunError(f"{stage.name} ended without writing {stage.path}; this is a bug of the program")
    _write_record(stage, "done", seconds=time.monotonic() - begun, result=result)


def _write_record(
    stage: Stage, status: str, seconds: float | None = None, result: Facts | None = None
) -> None:
    content = {
        "name": stage.name,
        "fingerprint": stage.fingerprint,
        "inputs": dict(stage.inputs),
        "status": status,
        "seconds": seconds,  # duration of the last attempt only, without interrupted ones
        "finished": datetime.now(UTC).isoformat(timespec="seconds") if status == "done" else None,
    }
    write_json(stage.record, content | ({} if result is None else {"result": result}))


def read_record(path: Path) -> Facts | None:
    """Return the record of a stage, with its name, fingerprint, status and inputs; None if there is no file.

    Raises:
        RunError: the file is damaged, or it is not the record of a stage.
    """
    if not path.is_file():
        return None
    record: object = read_json(path)  # may be anything: a user can have edited the file
    kinds = {"name": str, "fingerprint": str, "status": str, "inputs": dict}
    if not isinstance(record, dict) or not all(
        isinstance(record.get(key), kind) for key, kind in kinds.items()
    ):
        raise RunError(f"{path} is not the record of a stage; delete it and run again")
    return record


def _filled(path: Path) -> bool:
    """Return True if the path exists and holds more than the temporary files of an interrupted write."""
    if not path.is_dir():
        return path.exists()
    return any(not (file.name.startswith(".") and file.name.endswith(".partial")) for file in path.iterdir())


def _run_dir(stage: Stage) -> Path:
    """Return the nearest parent folder that this process has locked; if there is none, the direct parent."""
    return next(filter(owns, stage.path.parents), stage.path.parent)


def supersede(stage: Stage) -> Path:
    """Move the files of `stage` to `superseded/`, and return their new folder.

    Raises:
        RunError: the record is damaged, or a file cannot be moved.
    """
    record, run = read_record(stage.record), _run_dir(stage)
    digest = _NO_RECORD if record is None else record["fingerprint"][:8]
    first = target = RunDir(run).superseded(stage.name, digest)
    pieces = [piece.relative_to(run) for piece in stage.pieces if piece.exists()]
    # Files without a record all get the same name, so it may be taken: then -2, -3, … is appended.
    number = 1
    while any((target / piece).exists() for piece in pieces):
        number += 1
        target = first.with_name(f"{first.name}-{number}")
    for piece in pieces:
        _move(run / piece, target / piece)
    return target


def _restore(stage: Stage) -> bool:
    """Move files of the same inputs back from `superseded/`; files that exist in the run stay.

    Returns:
        True if anything was moved.
    """
    run = _run_dir(stage)
    source = RunDir(run).superseded(stage.name, stage.fingerprint[:8])
    moved = False
    # Record first, the reverse of `supersede`: after a kill, the files in place can be identified.
    for piece in reversed(stage.pieces):
        kept = source / piece.relative_to(run)
        if kept.exists() and not _filled(piece):
            remove(piece)  # at most temporary files
            _move(kept, piece)
            moved = True
    if source.is_dir() and not any(file.is_file() for file in source.rglob("*")):
        remove(source)
    return moved


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        sync_folder(target.parent)  # first: after a power failure both names may exist, but not none
        sync_folder(source.parent)
    except OSError as error:
        raise RunError(f"cannot move {source} to {target}: {error.strerror or error}") from error
