"""Gather what a run directory holds into one plain record; what is not there reads as None or empty."""

from __future__ import annotations

import csv
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.errors import InputError, RunError
from noisystudent.rundir import FINETUNE, read_json, student_count

Record = Mapping[str, Any]
Curve = list[tuple[int, float]]

SETS = ("val", "test")
ROLES = ("teacher", "student", "control")
LISTED_ROWS = 200


@dataclass(frozen=True, slots=True)
class Listing:
    """The head of a CSV file that may be long.

    Attributes:
        header: the column names.
        rows: its first `LISTED_ROWS` rows.
        total: how many rows there are.
        counts: how many rows each value of the column `set` has, in order of first appearance.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: int
    counts: Record


@dataclass(frozen=True, slots=True)
class Model:
    """One trained network: the teacher of iteration 0, or a student or its control.

    Attributes:
        role: teacher, student or control.
        iteration: 0 for the teacher.
        loss: training loss by step.
        val_top1: top-1 on val by step, in [0, 1].
        scores: metrics by set, empty before evaluation.
        predictions: the .npz file of each set that was predicted.
        robustness: its columns on corrupted, perturbed and attacked images, empty where none were asked for.
    """

    role: str
    iteration: int
    loss: Curve
    val_top1: Curve
    scores: Mapping[str, Record]
    predictions: Mapping[str, Path]
    robustness: Record

    @property
    def name(self) -> str:
        """How the report calls it: teacher, student 1, control 3."""
        return self.role if self.iteration == 0 else f"{self.role} {self.iteration}"


@dataclass(frozen=True, slots=True)
class Iteration:
    """One turn of the loop: its models and what was made of the pool; what is not there yet is None."""

    index: int
    models: tuple[Model, ...]
    pseudo_labels: Record | None
    selection: Record | None
    gallery: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything the report shows, as read from disk."""

    name: str
    config: str | None
    environment: Record | None
    dataset: Record | None
    ledger: Listing | None
    leaks: Listing | None
    iterations: tuple[Iteration, ...]
    verdict: Record | None

    @property
    def models(self) -> tuple[Model, ...]:
        """Every model, in the order in which it was trained."""
        return tuple(model for iteration in self.iterations for model in iteration.models)


def read_run(path: Path) -> Run:
    """Read a run directory, finished or not.

    Raises:
        InputError: `path` is not a run directory.
        RunError: a file in it is damaged.
    """
    folders = sorted(
        (int(index), folder)
        for folder in path.glob("iteration-*")
        if (index := folder.name.removeprefix("iteration-")).isdecimal() and folder.is_dir()
    )
    asked = student_count(path)
    if not folders and not (path / "config.yaml").is_file():
        raise InputError(f"{path} is not a run directory (no config.yaml); give a folder that `run` wrote")
    config = path / "config.yaml"
    return Run(
        name=path.resolve().name,
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else None,
        environment=_record(path / "environment.json"),
        dataset=_record(path / "data" / "dataset.json"),
        ledger=_listing(path / "data" / "ledger.csv"),
        leaks=_listing(path / "data" / "leaks.csv"),
        iterations=tuple(
            _iteration(index, folder) for index, folder in folders if asked is None or index <= asked
        ),
        verdict=_record(path / "verdict.json"),
    )


def load_predictions(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read the predictions of one model on one set.

    Returns:
        Probabilities (N, K) float32 and labels (N,) int64; rows of unknown label (-1)
        or of a diverged model (NaN) are left out.

    Raises:
        RunError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            probs = np.asarray(arrays["probs"], dtype=np.float32)
            labels = np.asarray(arrays["labels"], dtype=np.int64)
        if probs.ndim != 2 or labels.shape != probs.shape[:1] or (labels >= probs.shape[1]).any():
            raise ValueError(f"probs {probs.shape} do not fit labels {labels.shape}")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{path} cannot be read ({error}); delete it and run again") from error
    usable = (labels >= 0) & np.isfinite(probs).all(axis=1)
    return probs[usable], labels[usable]


def _record(path: Path) -> Record | None:
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise RunError(f"{path} holds a {type(content).__name__}, not an object; delete it and run again")
    return content


def _iteration(index: int, folder: Path) -> Iteration:
    evaluation = _record(folder / "evaluation.json") or {}
    scores = evaluation.get("models") or {}
    robustness = evaluation.get("robustness") or {}
    gallery = _record(folder / "gallery.json") or {}
    # In a later iteration 'teacher' is the student of the one before, which is in the table already.
    roles = ROLES if index == 0 else ROLES[1:]
    models = (
        _model(role, index, folder, scores.get(role) or {}, robustness.get(role) or {}) for role in roles
    )
    return Iteration(
        index=index,
        models=tuple(model for model in models if model is not None),
        pseudo_labels=evaluation.get("pseudo_labels"),
        selection=evaluation.get("selection"),
        gallery=tuple(gallery.get("classes") or ()),
    )


def _model(
    role: str, index: int, folder: Path, scores: Mapping[str, Record], robustness: Record
) -> Model | None:
    if not (scores or robustness or (folder / role).is_dir()):
        return None
    lines = _metric_lines(folder / role / "metrics.jsonl")
    second = folder / role / FINETUNE  # its scores are those of the second training
    home = second if second.is_dir() else folder / role
    files = {name: home / f"predictions-{name}.npz" for name in SETS}
    return Model(
        role=role,
        iteration=index,
        loss=_curve(lines, "loss"),
        val_top1=_curve(lines, "val_top1"),
        scores={name: scores[name] for name in SETS if scores.get(name)},
        predictions={name: file for name, file in files.items() if file.is_file()},
        robustness=robustness,
    )


def _metric_lines(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    # What follows the last newline is a line in the making, or one that a crash cut short.
    complete = path.read_text(encoding="utf-8").split("\n")[:-1]
    lines: list[Record] = []
    for number, line in enumerate(complete, start=1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RunError(f"{path} line {number} is not JSON; delete that line and try again") from error
    return lines


def _curve(lines: Iterable[Record], key: str) -> Curve:
    """One value a step, the last written wins: a resumed run repeats the steps since its checkpoint."""
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
    header = tuple(next(reader, ()))
    column = header.index("set") if "set" in header else 0
    rows: list[tuple[str, ...]] = []
    counts: Counter[str] = Counter()
    for row in reader:
        counts[row[column] if len(row) > column else ""] += 1
        if len(rows) < LISTED_ROWS:
            rows.append(tuple(row))
    return Listing(header=header, rows=tuple(rows), total=counts.total(), counts=dict(counts))
