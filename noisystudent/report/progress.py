"""What a run did: its models, the time of its stages, what changed between iterations, and its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisystudent.errors import RunError, first_line, readable_size
from noisystudent.recipes.overrides import flat
from noisystudent.report.read import Iteration, Run
from noisystudent.run.rundir import RunDir
from noisystudent.run.summary import read_schedule

_ROWS = 1 << 17  # rows in memory at a time


def facts(run: Run) -> list[str]:
    """The networks and the duration of a run, for the head of the page."""
    teachers = run.fields.get("teachers")
    teacher = teachers[0] if isinstance(teachers, list) and teachers else run.fields.get("teacher")
    learners = [("teacher", teacher), *(("student", each) for each in run.students[-1:])]
    names = [f"{role} {name}" for role, learner in learners if (name := _network(learner))]
    students = len(run.students)
    counts = [f"{students} iteration{'s' * (students != 1)}"] if students else []
    seconds = sum(stage.get("seconds") or 0 for stage in run.stages)
    return [*names, *counts, *([duration(seconds)] if seconds else [])]


def _network(learner: Any) -> str:
    """Name of the network of a learner of config.yaml, which may be edited by hand, or of an existing one."""
    origin = isinstance(learner, Mapping) and (learner.get("model_from") or learner.get("labels_from"))
    if origin:
        return Path(str(origin)).name
    model = learner.get("model") if isinstance(learner, Mapping) else None
    return str(model.get("name") or "") if isinstance(model, Mapping) else ""


def duration(seconds: float) -> str:
    """Write a duration with its two largest units: 3,725 s -> 1 h 2 min."""
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)  # rounded first: 119.7 s are 2 min 0 s, not 1 min 60 s
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def current(run: Run) -> str:
    """The stage that an unfinished run is at; "" if none is known."""
    unfinished = [str(stage["name"]) for stage in run.stages if stage["status"] != "done"]
    finished = [str(stage["name"]) for stage in run.stages if stage["status"] == "done"]
    if unfinished:
        return f"It is at {unfinished[-1]}."
    return f"Its last finished stage is {finished[-1]}." if finished else ""


def stages(run: Run) -> dict[str, Any] | None:
    """Duration of each finished stage; None if no stage is finished.

    Returns:
        rows: (name, duration, share of the longest in per cent, end in UTC, images of a training, peak
        memory). total: the sum. longest: name of the longest stage, and its share of the sum.

    Raises:
        RunError: the schedule of the run is damaged.
    """
    done = [stage for stage in run.stages if stage.get("seconds") is not None]
    total = sum(stage["seconds"] for stage in done)
    if not total:
        return None
    planned = read_schedule(RunDir(run.path)) or ()
    trainings = {(stage["name"], stage["fingerprint"]): stage["training"] for stage in planned}
    longest = max(done, key=lambda stage: float(stage["seconds"]))
    rows = [
        (
            stage["name"],
            duration(stage["seconds"]),
            round(100 * stage["seconds"] / longest["seconds"], 2),
            stage.get("finished") or "",
            _images(trainings.get((stage["name"], stage.get("fingerprint")))),
            _memory(stage.get("memory") or {}),
        )
        for stage in done
    ]
    share = longest["seconds"] / total
    return {"rows": rows, "total": duration(total), "longest": (longest["name"], share)}


def _images(training: Mapping[str, Any] | None) -> str:
    """Images of all steps of a training; "" of another stage, or in older runs."""
    return f"{training['images']:,} images" if training and training.get("images") else ""


def _memory(peak: Mapping[str, int | None]) -> str:
    """Peak memory of a stage, main memory first; "" in older runs."""
    named = (("", peak.get("resident")), ("GPU ", peak.get("gpu")))
    return ", ".join(f"{name}{readable_size(size)}" for name, size in named if size)


def changes(run: Run) -> list[dict[str, Any]]:
    """What differs between each iteration and the one before: labels and selection of the pool, and fields.

    Returns:
        Dicts of `index`; `images`, `relabeled`, `added` and `removed`, numbers of pool images, or without
        them if the selections are of different pools; and `fields`, rows (field, before, now) of the student.

    Raises:
        RunError: a selection cannot be read.
    """
    compared: list[dict[str, Any]] = []
    ready = [each for each in run.iterations if each.selection_file is not None]
    for before, now in pairwise(ready):
        first, second = (
            dict(flat(run.students[each.index - 1])) if each.index <= len(run.students) else {}
            for each in (before, now)
        )
        rows = [
            (name, _shown(first.get(name)), _shown(second.get(name)))
            for name in dict.fromkeys([*first, *second])
            if first.get(name) != second.get(name)
        ]
        compared.append({"index": now.index, "fields": rows, **_moved(before, now)})
    return compared


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _moved(before: Iteration, now: Iteration) -> dict[str, int]:
    """Number of pool images with another label, newly kept, and no longer kept. Files are in pool order."""
    files = [each.selection_file for each in (before, now) if each.selection_file is not None]
    try:
        if len({pq.read_metadata(file).num_rows for file in files}) > 1:
            return {}
        counts = np.zeros(4, np.int64)
        for first, second in zip(*map(_columns, files), strict=True):
            kept, keeps = first[1] > 0, second[1] > 0
            differing = first[0] != second[0]
            counts += [len(kept), differing.sum(), (keeps & ~kept).sum(), (kept & ~keeps).sum()]
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RunError(f"{files[-1]} cannot be compared with {files[0]} ({first_line(error)})") from error
    return dict(zip(("images", "relabeled", "added", "removed"), counts.tolist(), strict=True))


def _columns(file: Path) -> Iterator[tuple[Any, Any]]:
    """Labels and repeats of the pool images, some at a time."""
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(_ROWS, columns=["label", "repeats"]):
            yield batch["label"].to_numpy(), batch["repeats"].to_numpy()


def files(run: Run) -> Sequence[tuple[str, str]]:
    """(path in the run, what it holds) of the files that a reader may want to open."""
    own = RunDir(run.path)
    named = [
        (own.verdict, "the verdict and its statistics"),
        (own.metrics, "every score of every model"),
        (own.data.manifest, "every image in use"),
        (own.data.ledger, "images that cannot be used"),
        (own.data.leaks, "images in two sets, and duplicates"),
    ]
    for iteration in run.iterations:
        folder = own.iteration(iteration.index)
        named.append((folder.selection, f"decision on each pool image, iteration {iteration.index}"))
        named += [(folder.model(m.role).metrics, f"losses of {m.name}") for m in iteration.models]
    return [(path.relative_to(run.path).as_posix(), what) for path, what in named if path.is_file()]
