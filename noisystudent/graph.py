"""The stage graph of a run: what is to be done, where it is kept, what it depends on; known beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisystudent.config import (
    Config,
    DataConfig,
    LearnerConfig,
    PseudoLabelConfig,
    StudentConfig,
    TrainConfig,
)
from noisystudent.stages import Stage, fingerprint

# Fields that change how fast a run goes, where, or what it logs, not its results: editing redoes nothing.
_NEUTRAL: Mapping[type, frozenset[str]] = {
    DataConfig: frozenset(
        {"labeled", "unlabeled", "val", "test", "workers", "max_bad_fraction", "pool_truth"}
    ),
    TrainConfig: frozenset({"log_steps", "eval_steps", "checkpoint_steps", "execution"}),
    PseudoLabelConfig: frozenset({"batch_size", "part_size", "hard"}),
}
_FORMAT = 1  # raised when a stage's files change meaning, so that older runs redo it


@dataclass(frozen=True, slots=True)
class Iteration:
    """One turn of the loop: label, select, train."""

    index: int
    config: StudentConfig
    labels: Stage
    selection: Stage
    student: Stage
    control: Stage | None


@dataclass(frozen=True, slots=True)
class Graph:
    """Every stage of a run."""

    data: Stage
    teacher: Stage
    filter: Stage | None
    filter_labels: Stage | None
    iterations: tuple[Iteration, ...]
    judgement: Stage

    def stages(self) -> list[Stage]:
        """All stages in the order in which they run."""
        found = [self.data, self.teacher, self.filter, self.filter_labels]
        for turn in self.iterations:
            found += [turn.labels, turn.selection, turn.student, turn.control]
        return [stage for stage in (*found, self.judgement) if stage is not None]

    def models(self) -> list[tuple[int, str, Stage]]:
        """(iteration, role, stage) of every model that is judged, in order of training."""
        found = [(0, "teacher", self.teacher)]
        for turn in self.iterations:
            found.append((turn.index, "student", turn.student))
            if turn.control is not None:
                found.append((turn.index, "control", turn.control))
        return found


def build_graph(config: Config, listing: str, run: Path) -> Graph:
    """The stages of `config` on inputs whose listing has the fingerprint `listing`, kept under `run`."""
    data = _stage("data", run / "data", config=_significant(config.data), listing=listing, seed=config.seed)
    first = run / "iteration-0"
    teacher = _learner_stage("teacher", first / "teacher", config.teacher, data, config.seed)
    filter_model, filter_labels = None, None
    if config.filter is not None and config.students:
        said = _significant(config.students[0].pseudo_label)
        filter_model = _learner_stage("filter", first / "filter", config.filter, data, config.seed)
        path = run / "iteration-1" / "filter-labels"
        filter_labels = _stage("filter-labels", path, config=said, model=filter_model.fingerprint)
    turns: list[Iteration] = []
    for index in range(1, len(config.students) + 1):
        before = turns[-1] if turns else None
        with_control = config.control and index == len(config.students)
        turns.append(_iteration(config, index, run, data, teacher, filter_labels, before, with_control))
    graph = Graph(data, teacher, filter_model, filter_labels, tuple(turns), data)
    models = {stage.name: stage.fingerprint for _, _, stage in graph.models()}
    judgement = _stage(
        "judgement",
        run / "verdict.json",
        config=_significant(config.evaluate),
        truth=config.data.pool_truth,
        **models,
    )
    evaluations = [run / f"iteration-{index}" / "evaluation.json" for index in range(len(turns) + 1)]
    galleries = [file.with_name("gallery.json") for file in evaluations[1:]]
    judgement = dataclasses.replace(judgement, also=(run / "metrics.jsonl", *evaluations, *galleries))
    return dataclasses.replace(graph, judgement=judgement)


def _iteration(
    config: Config,
    index: int,
    run: Path,
    data: Stage,
    teacher: Stage,
    filter_labels: Stage | None,
    before: Iteration | None,
    with_control: bool,
) -> Iteration:
    student, seed, folder = config.students[index - 1], config.seed, run / f"iteration-{index}"
    speaker = before.student if before else teacher
    labels = _stage(
        f"labels-{index}",
        folder / "labels",
        config=_significant(student.pseudo_label),
        model=speaker.fingerprint,
    )
    selection = _stage(
        f"selection-{index}",
        folder / "selection.parquet",
        config=_significant(student.selection),
        labels=labels.fingerprint,
        filter=filter_labels.fingerprint if filter_labels else None,
        before=before.selection.fingerprint if before and student.selection.reassign else None,
        seed=seed,
    )
    if filter_labels:
        selection = dataclasses.replace(selection, also=(folder / "filter-selection.parquet",))
    shared: dict[str, object] = {
        "ratio": student.unlabeled_ratio,
        "initial": speaker.fingerprint if student.init == "teacher" else None,
        "iteration": index,
    }
    taught: dict[str, object] = {"selection": selection.fingerprint, "hard": student.pseudo_label.hard}
    trained = _learner_stage(f"student-{index}", folder / "student", student, data, seed, **shared, **taught)
    control = None
    if with_control:
        control = _learner_stage(f"control-{index}", folder / "control", student, data, seed, **shared)
    return Iteration(index, student, labels, selection, trained, control)


def _learner_stage(
    name: str, path: Path, learner: LearnerConfig, data: Stage, seed: int, **inputs: object
) -> Stage:
    parts = {part: _significant(getattr(learner, part)) for part in ("model", "augment", "train")}
    return _stage(name, path, data=data.fingerprint, seed=seed, **parts, **inputs)


def _stage(name: str, path: Path, **inputs: object) -> Stage:
    digests = {key: fingerprint(value) for key, value in inputs.items()}
    return Stage(name, path, fingerprint(_FORMAT, name, digests), digests)


def _significant(section: Any) -> Mapping[str, object]:
    """The fields of a configuration section that its results depend on."""
    neutral = _NEUTRAL.get(type(section), frozenset())
    return {key: value for key, value in dataclasses.asdict(section).items() if key not in neutral}
