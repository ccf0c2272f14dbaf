"""Read a run directory into one plain record; files that do not exist give None or an empty value."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noisystudent.config import EvaluateConfig
from noisystudent.errors import InputError, RunError
from noisystudent.run.files import read_json
from noisystudent.run.record import read_record, records
from noisystudent.run.rundir import CONTROLS, ROLES, TEACHERS, IterationDir, RunDir

Record = Mapping[str, Any]
Curve = list[tuple[int, float]]

SETS = ("val", "test")
LISTED_ROWS = 200  # a pool of millions can have a ledger of many thousands


@dataclass(frozen=True, slots=True)
class Listing:
    """First rows of a CSV file, which may be long.

    Attributes:
        header: column names.
        rows: first `LISTED_ROWS` rows.
        total: number of all rows.
        counts: number of rows for each value of the column `set`, in order of first appearance.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: int
    counts: Record


@dataclass(frozen=True, slots=True)
class Model:
    """One trained network: the teacher of iteration 0, a student, or the control of a student.

    Attributes:
        role: one of `ROLES`.
        iteration: 0 for the teacher.
        loss: (step, training loss) pairs.
        val_top1: (step, top-1 on val in [0, 1]) pairs.
        scores: set -> metrics. Empty before evaluation.
        predictions: set -> .npz file with the predictions on it.
        robustness: results on corrupted, perturbed and attacked images. Empty if there are no such tests.
        calibrated: temperature fitted on val, and set -> nll, ece and brier at it. Empty in older runs.
    """

    role: str
    iteration: int
    loss: Curve
    val_top1: Curve
    scores: Mapping[str, Record]
    predictions: Mapping[str, Path]
    robustness: Record
    calibrated: Record = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the model in the report: teacher, student 1, control 3."""
        if self.role == TEACHERS:
            return "average of the teachers"
        return self.role if self.iteration == 0 else f"{self.role} {self.iteration}"

    @property
    def is_control(self) -> bool:
        """True for a student that was trained on the labels alone."""
        return self.role in CONTROLS.values()


@dataclass(frozen=True, slots=True)
class Iteration:
    """Models, pseudo-labels and selection of one iteration; None for what does not exist yet.

    Attributes:
        index: number of the iteration.
        models: teachers, or student and controls.
        pseudo_labels: statistics of the labels.
        selection: counts of the selection.
        gallery: thumbnails of the pool, by class.
        mistakes: thumbnails of what the last student gets wrong; None in other iterations.
        corruptions: thumbnails of one test image under each corruption; empty in other iterations.
        selection_file: the selection itself.
        expected: counts of labelled images that the expected share of right labels is made of.
        settings: fields of `selection` of the student.
    """

    index: int
    models: tuple[Model, ...]
    pseudo_labels: Record | None
    selection: Record | None
    gallery: tuple[Record, ...]
    mistakes: Record | None
    corruptions: Record
    selection_file: Path | None
    expected: Record
    settings: Record


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that the report shows, as read from disk.

    Attributes:
        config: text of config.yaml, and `fields` its content.
        students: fields of each student in it.
        iterations: all iterations that have a folder.
        ece_bins: bins of the reliability.
        path: run directory.
        stages: records of the stages that were started, in their order.
    """

    name: str
    config: str | None
    environment: Record | None
    dataset: Record | None
    ledger: Listing | None
    leaks: Listing | None
    iterations: tuple[Iteration, ...]
    verdict: Record | None
    ece_bins: int
    path: Path
    fields: Record
    students: tuple[Record, ...]
    stages: tuple[Record, ...]

    @property
    def models(self) -> tuple[Model, ...]:
        """All models in the order of training."""
        return tuple(model for iteration in self.iterations for model in iteration.models)

    @property
    def corruptions(self) -> Record:
        """Thumbnails of one test image under each corruption; empty if none were tested."""
        return next((each.corruptions for each in reversed(self.iterations) if each.corruptions), {})


def last_student(models: Sequence[Model]) -> Model | None:
    """The last student among models in the order of a run; None if there is none."""
    return next((model for model in reversed(models) if model.role == "student"), None)


def read_run(run: RunDir) -> Run:
    """Read the directory of a run that is finished or in progress.

    Iterations of students that the configuration no longer has are left out.

    Raises:
        InputError: `run` is not a run directory.
        RunError: a file in it is damaged.
    """
    iterations, students = run.iterations(), run.student_count()
    if not iterations and not run.config.is_file():
        raise InputError(
            f"{run.path} is not a run directory (no config.yaml); give a folder that `run` wrote"
        )
    config, fields = run.config, run.read_config()
    evaluate, learners = fields.get("evaluate") or {}, _mappings(fields.get("students"))
    if not isinstance(evaluate, dict):
        raise RunError(
            f"{config}: evaluate is {evaluate!r}, not a mapping; run its recipe again to write a new one"
        )
    return Run(
        name=run.path.resolve().name,
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else None,
        environment=_record(run.environment),
        dataset=_record(run.data.dataset),
        ledger=_listing(run.data.ledger),
        leaks=_listing(run.data.leaks),
        iterations=tuple(
            _iteration(folder, learners[folder.index - 1] if 0 < folder.index <= len(learners) else {})
            for folder in iterations
            if students is None or folder.index <= students
        ),
        verdict=_record(run.verdict),
        ece_bins=evaluate.get("ece_bins", EvaluateConfig().ece_bins),
        path=run.path,
        fields=fields,
        students=learners,
        stages=tuple(record for record in map(read_record, records(run)) if record is not None),
    )


def _mappings(value: Any) -> tuple[Record, ...]:
    """The items of a list in config.yaml, which may be edited by hand; what is no mapping has no fields."""
    items = value if isinstance(value, list) else []
    return tuple(item if isinstance(item, dict) else {} for item in items)


def _record(path: Path) -> Record | None:
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise RunError(f"{path} holds a {type(content).__name__}, not an object; delete it and run again")
    return content


def _iteration(folder: IterationDir, student: Record) -> Iteration:
    evaluation = _record(folder.evaluation) or {}
    scores = evaluation.get("models") or {}
    robustness = evaluation.get("robustness") or {}
    calibrated = evaluation.get("calibrated") or {}
    gallery = _record(folder.gallery) or {}
    selected = (read_record(folder.selection_record) or {}).get("result") or {}
    # From iteration 1 on, the teacher is the student of the iteration before, which is in the report already.
    roles = ("teacher", TEACHERS) if folder.index == 0 else ROLES[1:]
    results = (scores, robustness, calibrated)
    models = (_model(role, folder, *(result.get(role) or {} for result in results)) for role in roles)
    return Iteration(
        index=folder.index,
        models=tuple(model for model in models if model is not None),
        pseudo_labels=evaluation.get("pseudo_labels"),
        selection=evaluation.get("selection"),
        gallery=tuple(gallery.get("classes") or ()),
        mistakes=gallery.get("mistakes"),
        corruptions=gallery.get("corruptions") or {},
        selection_file=folder.selection if folder.selection.is_file() else None,
        expected=selected.get("precision") or {},
        settings=(student.get("selection") or {}) | (selected.get("chosen") or {}),
    )


def _model(
    role: str, folder: IterationDir, scores: Mapping[str, Record], robustness: Record, calibrated: Record
) -> Model | None:
    first = folder.model(role)
    if not (scores or robustness or first.path.is_dir()):
        return None
    lines = _metric_lines(first.metrics)
    # A fine-tuned model is evaluated after the fine-tuning, so its predictions are in that folder.
    last = first.finetune if first.finetune.path.is_dir() else first
    files = {name: last.predictions(name) for name in SETS}
    return Model(
        role=role,
        iteration=folder.index,
        loss=_curve(lines, "loss"),
        val_top1=_curve(lines, "val_top1"),
        scores={name: scores[name] for name in SETS if scores.get(name)},
        predictions={name: file for name, file in files.items() if file.is_file()},
        robustness=robustness,
        calibrated=calibrated,
    )


def _metric_lines(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    # Text after the last newline is a line that is being written, or one that a crash cut short.
    complete = path.read_bytes().split(b"\n")[:-1]
    return [_metric_line(path, number, line) for number, line in enumerate(complete, start=1)]


def _metric_line(path: Path, number: int, line: bytes) -> Record:
    try:
        content = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        content = None
    if not isinstance(content, dict):
        raise RunError(f"{path} line {number} is not a JSON object; delete that line and try again")
    return content


def _curve(lines: Iterable[Record], key: str) -> Curve:
    """(step, value) pairs. A resumed run repeats steps; the last line of each step counts."""
    return sorted({int(line["step"]): float(line[key]) for line in lines if key in line}.items())


def _listing(path: Path) -> Listing | None:
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            return _head(csv.reader(file))
    except csv.Error as error:
        raise RunError(f"{path} is not valid CSV ({error}); delete it and run again") from error


def _head(reader: Iterator[list[str]]) -> Listing:
    """First rows of a table, and counts over all of it."""
    header = tuple(next(reader, ()))
    column = header.index("set") if "set" in header else 0
    rows: list[tuple[str, ...]] = []
    counts: Counter[str] = Counter()
    for row in reader:
        counts[row[column] if len(row) > column else ""] += 1
        if len(rows) < LISTED_ROWS:
            rows.append(tuple(row))
    return Listing(header=header, rows=tuple(rows), total=counts.total(), counts=dict(counts))
