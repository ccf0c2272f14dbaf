"""A stage of a run: its inputs, its status on disk, and running it again if the inputs have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path

from noisystudent.console import Progress
from noisystudent.distributed import group
from noisystudent.errors import RunError
from noisystudent.run.aside import free_folder, move, named, put_aside, run_folder
from noisystudent.run.checksums import checksums, problems
from noisystudent.run.cost import Cost
from noisystudent.run.files import remove
from noisystudent.run.record import Facts, read_record, valid_record, write_record
from noisystudent.run.rundir import RECORD, RunDir

# Takes the place of the fingerprint in superseded/ for files without a valid record.
_UNRECORDED = "unrecorded"

Work = Callable[[], Facts | None]


class Status(StrEnum):
    """Status of a stage on disk.

    done: it is complete. partial: it was started with the same inputs and interrupted. damaged: it was
    complete, but files are missing or have changed. stale: its files were made from other inputs. absent: it
    was not started.
    """

    DONE = "done"
    PARTIAL = "partial"
    DAMAGED = "damaged"
    STALE = "stale"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class State:
    """Status of a stage, and the reasons if it is stale or damaged.

    Attributes:
        status: status on disk.
        changed: names of the inputs that differ.
        problems: what is wrong with its files, for example "data/dataset.json is damaged".
    """

    status: Status
    changed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


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

    def outputs(self) -> list[Path]:
        """Return the files and folders that the record has checksums of."""
        return [self.path, *self.also] if self.path.suffix else list(self.path.iterdir())


def state(stage: Stage, *, contents: bool = False) -> State:
    """Return the state of `stage` on disk, without changing anything.

    Args:
        stage: the stage.
        contents: compare the contents of a finished stage with its checksums. False: only the sizes of files.
    """
    try:
        record = read_record(stage.record)
    except RunError:
        return State(Status.STALE, problems=(f"{named(stage.record)} is damaged",))
    if record is None:
        # Nothing proves that files without a record belong to this stage, so they are not used. They may be
        # of the user, so they are not deleted either: `run_stage` moves them away.
        unknown = any(_filled(piece) for piece in stage.pieces)
        return (
            State(Status.STALE, problems=(f"{named(stage.record)} is missing",))
            if unknown
            else State(Status.ABSENT)
        )
    if record["fingerprint"] == stage.fingerprint:
        if record["status"] != "done":
            return State(Status.PARTIAL)
        damage = tuple(_damage(stage, record, contents).values())
        return State(Status.DAMAGED, problems=damage) if damage else State(Status.DONE)
    # Both sets of names: an input may be new, or may not exist any more.
    names = sorted(record["inputs"].keys() | stage.inputs.keys())
    changed = tuple(name for name in names if record["inputs"].get(name) != stage.inputs.get(name))
    # Equal inputs but another fingerprint: only the format number of `graph` can differ.
    return State(Status.STALE, changed or ("stage format",))


def supersede_stale(stages: Iterable[Stage], progress: Progress) -> None:
    """Move the files of all stages whose inputs have changed to `superseded/`, and name them.

    A run does so before its first stage. Otherwise, if it were stopped, other commands would use such files.
    The last stage is moved first, so that a kill leaves no result without the files it was made from.
    """
    for stage in reversed(list(stages)):
        current = state(stage)
        if current.changed:
            _put_stale_aside(stage, current, progress)


def run_stage(stage: Stage, work: Work, progress: Progress, *, shared: bool = False) -> Facts | None:
    """Run `stage` unless it is done.

    Files made from other inputs are moved to `superseded/` in the run directory. They are moved back when the
    inputs are the old ones again. The files of a finished stage are compared with their checksums. Damaged
    ones are moved to `superseded/damaged/` and made again. `work` is called if the stage is absent, partial
    or damaged; it must resume from the files that are there. If the call is killed at any moment, the next
    call continues from there.

    Args:
        stage: the stage to run.
        work: makes `stage.path`. Its result is stored in the record, so it must be JSON or None.
        progress: receives a line for each thing that is done or skipped.
        shared: True: every process of the run calls `work`. False: process 0 alone, and the others wait.

    Returns:
        The result of `work` in process 0, from this call or the earlier call that finished the stage.

    Raises:
        RunError: `work` did not make `stage.path`, or the disk is full.
    """
    everyone = group()
    if everyone.lead(partial(_begin, stage, progress)):
        cost = Cost()
        result = work() if shared else everyone.lead(work)
        everyone.lead(partial(_write_record, stage, "done", cost.read(), result))
        everyone.lead(partial(progress.finish, stage.record))
    return everyone.lead(lambda: (read_record(stage.record) or {}).get("result"))


def _begin(stage: Stage, progress: Progress) -> bool:
    """Prepare the files of a stage for its work. False: it is done."""
    current = state(stage, contents=True)
    if current.status is Status.STALE:
        _put_stale_aside(stage, current, progress)
    # After that, so that the place is free when an older version is moved back.
    if current.status is not Status.DONE and _restore(stage):
        progress.say(f"{stage.name}: moved back from superseded/")
        current = state(stage, contents=True)  # a restored stage may be done or partial
    if current.status is Status.DONE:
        progress.say(f"{stage.name}: done before, skipped")
        return False
    if current.status is Status.DAMAGED:
        _put_damage_aside(stage, progress)
    if current.status is Status.PARTIAL:
        progress.say(f"{stage.name}: interrupted before, resumed")
    # Written before the work: after a kill, the files can then be identified as a partial stage.
    _write_record(stage, "running")
    return True


def _put_stale_aside(stage: Stage, current: State, progress: Progress) -> None:
    inputs = f"made from other inputs ({', '.join(current.changed)})"
    why = inputs if current.changed else ", ".join(current.problems)
    progress.say(f"{stage.name}: {why}; moved to {supersede(stage)}")


def _write_record(stage: Stage, status: str, cost: Facts | None = None, result: Facts | None = None) -> None:
    """Write the record; `cost` is that of the last attempt only, without interrupted ones."""
    done = status == "done"
    if done and not stage.path.exists():
        raise RunError(f"{stage.name} ended without writing {stage.path}; this is a bug of the program")
    content: Facts = {
        "name": stage.name,
        "fingerprint": stage.fingerprint,
        "inputs": dict(stage.inputs),
        "status": status,
        **(cost or {"seconds": None, "memory": None}),
        "finished": datetime.now(UTC).isoformat(timespec="seconds") if done else None,
        "files": checksums(stage.record.parent, stage.outputs()) if done else {},
    }
    write_record(stage.record, content | ({} if result is None else {"result": result}))


def _damage(stage: Stage, record: Facts, contents: bool) -> dict[Path, str]:
    """Return {file: "<path in the run> is missing" or "… is damaged"} of a finished stage."""
    gone = {piece: "is missing" for piece in stage.pieces if not piece.exists()}
    # Records of older versions have no checksums, so nothing is compared.
    differing = gone | problems(stage.record.parent, record.get("files", {}), contents=contents)
    return {path: f"{named(path)} {problem}" for path, problem in differing.items()}


def _put_damage_aside(stage: Stage, progress: Progress) -> None:
    """Move the damaged files of a stage away, and name them."""
    for path, problem in _damage(stage, read_record(stage.record) or {}, contents=True).items():
        kept = f"; kept in {put_aside(path)}" if path.exists() else ""
        progress.say(f"{stage.name}: {problem}{kept}; it is made again")


def _filled(path: Path) -> bool:
    """Return True if the path exists and holds more than the temporary files of an interrupted write."""
    if not path.is_dir():
        return path.exists()
    return any(not (file.name.startswith(".") and file.name.endswith(".partial")) for file in path.iterdir())


def supersede(stage: Stage) -> Path:
    """Move the files of `stage` to `superseded/`, and return their new folder.

    Raises:
        RunError: a file cannot be moved.
    """
    run = run_folder(stage.path)
    pieces = [piece.relative_to(run) for piece in stage.pieces if piece.exists()]
    # Files without a record all get the same name, so it may be taken.
    target = free_folder(RunDir(run).superseded(stage.name, _recorded_digest(stage)), pieces)
    for piece in pieces:
        move(run / piece, target / piece)
    return target


def _recorded_digest(stage: Stage) -> str:
    """Return the first 8 digits of the fingerprint that the files on disk were made with."""
    record = valid_record(stage.record)
    return _UNRECORDED if record is None else str(record["fingerprint"])[:8]


def _restore(stage: Stage) -> bool:
    """Move files of the same inputs back from `superseded/`; files that exist in the run stay.

    Returns:
        True if anything was moved.
    """
    run = run_folder(stage.path)
    source = RunDir(run).superseded(stage.name, stage.fingerprint[:8])
    moved = False
    # Record first, the reverse of `supersede`: after a kill, the files in place can be identified.
    for piece in reversed(stage.pieces):
        kept = source / piece.relative_to(run)
        if kept.exists() and not _filled(piece):
            remove(piece)  # at most temporary files
            move(kept, piece)
            moved = True
    if source.is_dir() and not any(file.is_file() for file in source.rglob("*")):
        remove(source)
    return moved
