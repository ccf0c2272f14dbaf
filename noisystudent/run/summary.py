"""Where a run stands, for programs and as one line, read without importing torch; see docs/status.md."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from noisystudent.errors import InputError, RunError
from noisystudent.run.files import read_json
from noisystudent.run.lock import is_locked, owner_of
from noisystudent.run.record import Facts, read_record, records
from noisystudent.run.rundir import ModelDir, RunDir

FORMAT = "noisystudent.status/1"
"""Format of `Summary`. Keys may be added. If one is removed or changes its meaning, the number grows."""

RunState = Literal["running", "finished", "stopped", "dead", "unknown"]

_TAIL = 4096  # bytes at the end of metrics.jsonl that hold its last lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Where a run stands. None: not known, or there is no such thing.

    Attributes:
        format: `FORMAT`.
        run: run directory, as it was given.
        state: running; finished; stopped by a signal or an error, so that the same call resumes it; dead: its
            process is gone without a word; unknown: its process was on another host, and may be there still.
        stage: the stage that runs, was interrupted, or was finished last.
        step, steps: steps that the training `stage` has logged, and all of its steps.
        loss: loss that it has logged last.
        total_steps_done, total_steps: the same of all trainings of the run.
        seconds_left: of the trainings of a running run, by their images per second; labelling and evaluation
            are not in it.
        stages_done, stages: numbers of stages.
        verdict: state and sentence of verdict.json.
    """

    format: str = FORMAT
    run: str
    state: RunState
    stage: str | None
    step: int | None
    steps: int | None
    loss: float | None
    total_steps_done: int | None
    total_steps: int | None
    seconds_left: float | None
    stages_done: int
    stages: int | None
    verdict: Mapping[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, for JSON."""
        return asdict(self)

    def line(self) -> str:
        """Return one line of text."""
        parts = [self.state if self.stage is None else f"{self.state}: {self.stage}"]
        if self.step is not None:
            loss = "" if self.loss is None else f", loss {self.loss:.3f}"
            parts.append(f"step {self.step:,}{'' if self.steps is None else f' of {self.steps:,}'}{loss}")
        if self.total_steps and self.total_steps_done is not None:
            share = self.total_steps_done / self.total_steps
            parts.append(f"{self.total_steps_done:,} of {self.total_steps:,} steps in all ({share:.0%})")
        if self.seconds_left is not None:
            parts.append(f"{self.seconds_left:,.0f} s of training left")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class _Training:
    """A training in the schedule.

    Attributes:
        kind: network and resolution.
        steps, images: of the whole training; None: not known yet.
        done: steps that are done.
        rate: images per second that it has logged last; None: none yet.
    """

    kind: tuple[str, int]
    steps: int | None
    images: int | None
    done: int
    rate: float | None


def summarize(run: RunDir) -> Summary:
    """Return where a run stands.

    Raises:
        InputError: `run` is not a run directory.
        RunError: a file of the run is damaged.
    """
    require_run(run)
    locked = is_locked(run.path)  # before the records: a run that ends meanwhile has written 'done' by then
    known = [(path.parent, record) for path in records(run) if (record := read_record(path)) is not None]
    every, schedule = {record["name"]: (folder, record) for folder, record in known}, read_schedule(run)
    # Without the stages whose inputs have changed since, and those that are not configured any more.
    prints = None if schedule is None else {entry["name"]: entry["fingerprint"] for entry in schedule}
    current = {
        name: (folder, record)
        for name, (folder, record) in every.items()
        if prints is None or prints.get(name) == record["fingerprint"]
    }
    done = [name for name, (_, record) in current.items() if record["status"] == "done"]
    # A kill while a run moves old files may leave the record of the verdict without the verdict.
    judged = "judgement" in done and run.verdict.is_file()
    complete = judged and (schedule is None or len(done) == len(schedule))
    trainings = {
        entry["name"]: _training(entry["training"], current.get(entry["name"]))
        for entry in schedule or ()
        if entry["training"] is not None
    }
    begun = (name for name, (_, record) in every.items() if record["status"] != "done")
    at = next(begun, done[-1] if done else None)
    training = trainings.get(at or "")
    logged = last_line(ModelDir(every[at][0]).metrics) if at in every else {}
    state = _state(run.path, locked=locked, complete=complete)
    return Summary(
        run=str(run.path),
        state=state,
        stage=at,
        step=logged.get("step") if training is None else training.done,
        steps=None if training is None else training.steps,
        loss=logged.get("loss"),
        total_steps_done=sum(one.done for one in trainings.values()) if trainings else None,
        total_steps=_total(one.steps for one in trainings.values()) if trainings else None,
        seconds_left=_seconds_left(list(trainings.values())) if state == "running" else None,
        stages_done=len(done),
        stages=None if schedule is None else len(schedule),
        verdict=_verdict(run) if complete else None,
    )


def require_run(run: RunDir) -> None:
    """Check that a folder is a run directory.

    Raises:
        InputError: it is not.
    """
    if not run.config.is_file():
        raise InputError(
            f"{run.path} is not a run directory (no config.yaml); give a folder that `run` wrote"
        )


def last_line(metrics: Path) -> Facts:
    """Return the last line of a training's metrics.jsonl that has a loss; empty if there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - _TAIL))
            lines = file.read().split(b"\n")[:-1]  # text after the last newline is being written
    except OSError:  # no training, or it has just begun
        return {}
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:  # the first line of the tail may be cut
            continue
        if isinstance(entry, dict) and {"step", "loss"} <= entry.keys():
            return entry
    return {}


def _state(folder: Path, *, locked: bool, complete: bool) -> RunState:
    if locked:
        return "running"
    if complete:
        return "finished"
    process = owner_of(folder)
    if process is None:
        return "stopped"
    return "dead" if process.host == socket.gethostname() else "unknown"


def read_schedule(run: RunDir) -> list[Facts] | None:
    """All stages, see `self_training.schedule`; None in a run of an older version, or before its scan ends.

    Raises:
        RunError: the file is damaged.
    """
    if not run.schedule.is_file():
        return None
    stages = read_json(run.schedule)
    stages = stages.get("stages") if isinstance(stages, dict) else None
    keys = {"name", "fingerprint", "training"}
    if not isinstance(stages, list) or not all(
        isinstance(one, dict) and keys <= one.keys() for one in stages
    ):
        raise RunError(f"{run.schedule} is not the schedule of a run; start the run again to write it anew")
    return stages


def _training(length: Facts, begun: tuple[Path, Facts] | None) -> _Training:
    """A training of the schedule, from the record and the metrics of its stage if it has begun."""
    folder, record = begun or (None, {})
    logged = {} if folder is None else last_line(ModelDir(folder).metrics)
    done = length["steps"] if record.get("status") == "done" else logged.get("step", 0)
    kind = (length["model"], length["resolution"])
    return _Training(kind, length["steps"], length["images"], done or 0, logged.get("images_per_second"))


def _total(values: Iterable[int | None]) -> int | None:
    """Sum of the values; None if one is not known."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _seconds_left(trainings: list[_Training]) -> float | None:
    """Seconds of all steps that are left, at the rate of the last training of the same network.

    A network that has not been trained yet has the rate of the last one that was. None: no rate is known.
    """
    rates = {one.kind: one.rate for one in trainings if one.rate}
    seconds, latest = 0.0, next(reversed(rates.values()), None)
    for one in trainings:
        rate = rates.get(one.kind, latest)
        if rate is None or not one.steps or one.images is None:
            return None
        seconds += one.images * (1 - one.done / one.steps) / rate
    return seconds if trainings else None


def _verdict(run: RunDir) -> dict[str, Any]:
    content = read_json(run.verdict)
    if not isinstance(content, dict):
        raise RunError(f"{run.verdict} is not a verdict; start the run again to write it anew")
    return {name: content.get(name) for name in ("state", "sentence")}
