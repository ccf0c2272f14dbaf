"""Stages and scores of a run as rows of a table, read without importing torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisystudent.run.graph import Graph
from noisystudent.run.lock import is_locked
from noisystudent.run.record import read_record, records
from noisystudent.run.rundir import ModelDir, RunDir, model_name
from noisystudent.run.stages import Status, state
from noisystudent.run.summary import last_line, require_run

Row = tuple[str, ...]
"""Cells of one row of a table."""


def states(graph: Graph, run: RunDir) -> list[Row]:
    """Return (stage, state, path in the run) of every stage, in the order in which the stages run.

    Raises:
        RunError: a record is damaged.
    """
    rows: list[Row] = []
    for stage in graph.stages():
        current = state(stage)
        inputs = f"{', '.join(current.changed)} changed"
        redo = f"to redo: {inputs if current.changed else ', '.join(current.problems)}"
        text = {
            Status.DONE: "done",
            Status.PARTIAL: "interrupted, will resume",
            Status.ABSENT: "to do",
            Status.DAMAGED: redo,
            Status.STALE: redo,
        }[current.status]
        rows.append((stage.name, text, str(stage.path.relative_to(run.path))))
    return rows


def recorded(run: RunDir) -> list[Row]:
    """Return (stage, status, seconds, time of the end in UTC) of every stage that was started.

    The status is done; running, with the last step and loss of a training; or interrupted: the process that
    ran the stage has ended.

    Raises:
        InputError: `run` is not a run directory.
        RunError: a file of the run is damaged.
    """
    require_run(run)
    locked = is_locked(run.path)  # before the records: a run that ends meanwhile has written 'done' by then
    existing = [(path.parent, read_record(path)) for path in records(run)]
    return [_recorded(folder, record, locked) for folder, record in existing if record is not None]


def scores(run: RunDir) -> list[Row]:
    """Return (model, set, top-1, top-5, NLL, ECE) of every evaluated model, read from metrics.jsonl.

    Top-1 and top-5 are in percent, the negative log-likelihood in nats, the calibration error in [0, 1].
    """
    rows: list[Row] = []
    for line in run.metrics.read_text(encoding="utf-8").splitlines():
        result = json.loads(line)
        name = model_name(result["iteration"], result["model"])
        percent = (f"{result['top1']:.2%}", f"{result['top5']:.2%}")
        rows.append((name, result["set"], *percent, f"{result['nll']:.4f}", f"{result['ece']:.4f}"))
    return rows


def _recorded(folder: Path, record: Mapping[str, Any], locked: bool) -> Row:
    status, seconds = record["status"], record.get("seconds")
    if status == "running":
        # A process that was killed could not write that it stopped. The lock shows that it has ended.
        status = f"running{_step(ModelDir(folder).metrics)}" if locked else "interrupted"
    return (
        record["name"],
        status,
        f"{seconds:,.1f}" if isinstance(seconds, int | float) else "",
        str(record.get("finished") or ""),
    )


def _step(metrics: Path) -> str:
    """Last step and loss that a training has written; "" if there is none."""
    entry = last_line(metrics)
    return f": step {entry['step']:,}, loss {entry['loss']:.3f}" if entry else ""
