"""The stage graph: what a stage was made from, whether it is done, and what must run again and why."""

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

from noisystudent import rundir
from noisystudent.errors import RunError

Facts = dict[str, Any]

_SUPERSEDED = "superseded"
_NO_RECORD = "unrecorded"


class Status(StrEnum):
    """Where a stage stands.

    done: nothing to do. partial: begun with these inputs and interrupted. stale: made from other inputs.
    """

    DONE = "done"
    PARTIAL = "partial"
    STALE = "stale"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class State:
    """A stage's status and, where it is stale, the names of the inputs that differ."""

    status: Status
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a run.

    Attributes:
        name: unique in the run; a file name.
        path: what the stage makes: with a suffix a file, without one a folder of its own.
        fingerprint: of the configuration and inputs that the result depends on.
        inputs: what the fingerprint was made of, name to digest; says why a stage must run again.
        also: further files a file stage makes under the run directory; they are moved along with it.
    """

    name: str
    path: Path
    fingerprint: str
    inputs: Mapping[str, str]
    also: tuple[Path, ...] = ()

    @property
    def record(self) -> Path:
        """The stage.json in the folder, or beside the file."""
        return self.path.with_suffix(".stage.json") if self.path.suffix else self.path / "stage.json"

    @property
    def pieces(self) -> tuple[Path, ...]:
        """What moves together; a file's record last, so that a half-moved stage still says what it is."""
        return (self.path, *self.also, *((self.record,) if self.path.suffix else ()))


def fingerprint(*parts: object) -> str:
    """Sha256 in hex of dataclasses, mappings, sequences, paths, strings, numbers: equal values, equal digest.

    The order of keys does not count, list and tuple are the same, and 1.0 is 1.

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
        return int(value)  # `10` in a recipe and `10.0` on the command line are one value
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be fingerprinted")


def state(stage: Stage) -> State:
    """Where `stage` stands on disk; changes nothing.

    Raises:
        RunError: its stage.json is damaged.
    """
    record = _read_record(stage)
    if record is None:
        # What is of unknown origin is not this stage's, and is not thrown away either.
        unknown = any(_filled(piece) for piece in stage.pieces)
        return State(Status.STALE, (_NO_RECORD,)) if unknown else State(Status.ABSENT)
    if record["fingerprint"] == stage.fingerprint:
        finished = record["status"] == "done" and all(piece.exists() for piece in stage.pieces)
        return State(Status.DONE if finished else Status.PARTIAL)
    names = sorted(record["inputs"].keys() | stage.inputs.keys())
    changed = tuple(name for name in names if record["inputs"].get(name) != stage.inputs.get(name))
    return State(Status.STALE, changed or ("stage format",))


def run_stage(stage: Stage, work: Callable[[], Facts | None], notify: Callable[[str], None]) -> Facts | None:
    """Do what is left to do of `stage`: nothing, the rest, or everything.

    What other inputs made is moved to `superseded/` of the run directory, and comes back when its inputs do.
    `work` is called on an absent stage or on a partial one, which it resumes by its own means. Killed at
    any moment, the next call goes on from there and loses nothing.

    Args:
        stage: what to do.
        work: makes `stage.path`; what it returns is kept in stage.json.
        notify: told in one line what happens.

    Returns:
        What `work` returned, now or when the stage was done.

    Raises:
        RunError: stage.json is damaged, `work` left nothing at `stage.path`, or the disk refuses.
    """
    current = state(stage)
    if current.status is Status.STALE:
        why = ", ".join(current.changed)
        notify(f"{stage.name}: made from other inputs ({why}); kept in {supersede(stage)}")
    if current.status is not Status.DONE and _restore(stage):
        notify(f"{stage.name}: brought back from {_SUPERSEDED}")
    status = state(stage).status
    if status is Status.DONE:
        notify(f"{stage.name}: done before, skipped")
    else:
        if status is Status.PARTIAL:
            notify(f"{stage.name}: interrupted before, resumed")
        _perform(stage, work)
    return (_read_record(stage) or {}).get("result")


def _perform(stage: Stage, work: Callable[[], Facts | None]) -> None:
    _write_record(stage, "running")
    begun = time.monotonic()
    result = work()
    if not stage.path.exists():
        raise RunError(f"{stage.name} ended without writing {stage.path}")
    _write_record(stage, "done", seconds=time.monotonic() - begun, result=result)


def _write_record(
    stage: Stage, status: str, seconds: float | None = None, result: Facts | None = None
) -> None:
    content = {
        "name": stage.name,
        "fingerprint": stage.fingerprint,
        "inputs": dict(stage.inputs),
        "status": status,
        "seconds": seconds,  # of the attempt that finished
        "finished": datetime.now(UTC).isoformat(timespec="seconds") if status == "done" else None,
    }
    rundir.write_json(stage.record, content | ({} if result is None else {"result": result}))


def _read_record(stage: Stage) -> Facts | None:
    if not stage.record.is_file():
        return None
    found: Facts = rundir.read_json(stage.record)
    kinds = {"fingerprint": str, "status": str, "inputs": dict}
    if not isinstance(found, dict) or not all(
        isinstance(found.get(key), kind) for key, kind in kinds.items()
    ):
        raise RunError(f"{stage.record} is not the record of a stage; move the stage away and run again")
    return found


def _filled(path: Path) -> bool:
    """Something other than an atomic write's leftovers is there."""
    if not path.is_dir():
        return path.exists()
    return any(not (file.name.startswith(".") and file.name.endswith(".partial")) for file in path.iterdir())


def _run_dir(stage: Stage) -> Path:
    """The nearest folder above that this process has locked; without a lock, the stage's own parent."""
    return next(
        (folder for folder in stage.path.parents if folder.resolve() in rundir.OWNED), stage.path.parent
    )


def supersede(stage: Stage) -> Path:
    """Put away what is there of `stage`; returns the folder it is in."""
    record, run = _read_record(stage), _run_dir(stage)
    digest = _NO_RECORD if record is None else record["fingerprint"][:8]
    wanted = shelf = run / _SUPERSEDED / f"{stage.name}-{digest}"
    here = [piece.relative_to(run) for piece in stage.pieces if piece.exists()]
    number = 1
    while any((shelf / piece).exists() for piece in here):
        number += 1
        shelf = wanted.with_name(f"{wanted.name}-{number}")
    for piece in here:
        _move(run / piece, shelf / piece)
    return shelf


def _restore(stage: Stage) -> bool:
    """Bring back what these inputs made before, record first; what is in its place stays."""
    run = _run_dir(stage)
    shelf = run / _SUPERSEDED / f"{stage.name}-{stage.fingerprint[:8]}"
    moved = False
    for piece in reversed(stage.pieces):
        kept = shelf / piece.relative_to(run)
        if kept.exists() and not _filled(piece):
            rundir.remove(piece)
            _move(kept, piece)
            moved = True
    if shelf.is_dir() and not any(file.is_file() for file in shelf.rglob("*")):
        rundir.remove(shelf)
    return moved


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        rundir.sync_folder(target.parent)
        rundir.sync_folder(source.parent)
    except OSError as error:
        raise RunError(f"cannot move {source} to {target}: {error.strerror or error}") from error
