"""What would run, what is done, and what came out: as rows of a table, without anything that trains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from noisystudent import rundir
from noisystudent.config import Config
from noisystudent.data.sources import Sources, listing_fingerprint
from noisystudent.errors import InputError
from noisystudent.graph import Graph, build_graph
from noisystudent.stages import Status, state

Row = tuple[str, ...]

# Records of the first iteration and of the others, in the order in which they are made.
_FIRST = (
    "filter/stage.json",
    "pretraining/stage.json",
    "teacher*/stage.json",
    "teacher*/finetune/stage.json",
)
_TURN = (
    "filter-labels/stage.json",
    "labels/stage.json",
    "selection.stage.json",
    "student/stage.json",
    "student/finetune/stage.json",
    "control/stage.json",
    "control/finetune/stage.json",
)


def plan(config: Config, sources: Sources, run: Path) -> Graph:
    """What `self_train` would run: the stages, whose states on disk tell what is done."""
    return build_graph(config, listing_fingerprint(sources), run)


def states(graph: Graph, run: Path) -> list[Row]:
    """(stage, state, path in the run) of every stage in the order in which they run."""
    rows: list[Row] = []
    for stage in graph.stages():
        found = state(stage)
        said = {
            Status.DONE: "done",
            Status.PARTIAL: "interrupted, will go on",
            Status.ABSENT: "to do",
            Status.STALE: f"to redo: {', '.join(found.changed)} changed",
        }[found.status]
        rows.append((stage.name, said, str(stage.path.relative_to(run))))
    return rows


def recorded(run: Path) -> list[Row]:
    """(stage, status, seconds, finished) of every stage a run has begun.

    Raises:
        InputError: no run is there.
    """
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run} is not a run directory (no config.yaml); give a folder that `run` wrote")
    return [_recorded(path) for path in _records(run)]


def scores(run: Path) -> list[Row]:
    """(model, set, top-1, top-5, NLL, ECE) of every judged model, from the run's metrics.jsonl."""
    rows: list[Row] = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        name = found["model"] if found["iteration"] == 0 else f"{found['model']}-{found['iteration']}"
        percent = (f"{found['top1']:.2%}", f"{found['top5']:.2%}")
        rows.append((name, found["set"], *percent, f"{found['nll']:.4f}", f"{found['ece']:.4f}"))
    return rows


def _records(run: Path) -> Iterator[Path]:
    """The stage records that exist, in order."""
    turns = range(1, 1 + (rundir.student_count(run) or 0))
    names = ["data/stage.json", *(f"iteration-0/{name}" for name in _FIRST)]
    names += [f"iteration-{i}/{name}" for i in turns for name in _TURN]
    return (path for name in (*names, "verdict.stage.json") for path in sorted(run.glob(name)))


def _recorded(path: Path) -> Row:
    found = rundir.read_json(path)
    seconds = found.get("seconds")
    return (
        found["name"],
        found["status"],
        "" if seconds is None else f"{seconds:,.1f}",
        found.get("finished") or "",
    )
