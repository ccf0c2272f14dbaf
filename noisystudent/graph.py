"""The stage graph of a run: what is to be done, where it is kept, what it depends on; known beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisystudent.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    LearnerConfig,
    PseudoLabelConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)
from noisystudent.config.check import require
from noisystudent.rundir import FINETUNE
from noisystudent.stages import Stage, fingerprint

# Fields that change how fast a run goes, where, or what it logs, not its results: editing redoes nothing.
_NEUTRAL: Mapping[type, frozenset[str]] = {
    DataConfig: frozenset(
        {"labeled", "unlabeled", "val", "test", "workers", "max_bad_fraction", "pool_truth"}
    ),
    TrainConfig: frozenset({"log_steps", "eval_steps", "checkpoint_steps", "execution"}),
    EvaluateConfig: frozenset({"batch_size"}),
    PseudoLabelConfig: frozenset({"batch_size", "part_size", "hard", "on_the_fly", "match_temperature"}),
}
_FORMAT = 1  # raised when a stage's files change meaning, so that older runs redo it


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is judged.

    Attributes:
        iteration: 0 for the teacher.
        role: teacher, student or control.
        training: its stage.
        finetuning: the stage after it, if there is one.
    """

    iteration: int
    role: str
    training: Stage
    finetuning: Stage | None = None

    @property
    def last(self) -> Stage:
        """The stage whose weights speak."""
        return self.finetuning or self.training


@dataclass(frozen=True, slots=True)
class Iteration:
    """One turn of the loop: label, select, train."""

    index: int
    config: StudentConfig
    labels: Stage
    selection: Stage
    student: Model
    control: Model | None


@dataclass(frozen=True, slots=True)
class Graph:
    """Every stage of a run.

    Attributes:
        companions: teachers of iteration 0 beside the first.
    """

    data: Stage
    pretraining: Stage | None
    teacher: Model
    companions: tuple[Model, ...]
    filter: Stage | None
    filter_labels: Stage | None
    iterations: tuple[Iteration, ...]
    judgement: Stage

    def stages(self) -> list[Stage]:
        """All stages in the order in which they run."""
        found = [self.data, self.filter, self.filter_labels, self.pretraining]
        for model in (self.teacher, *self.companions):
            found += [model.training, model.finetuning]
        for turn in self.iterations:
            found += [turn.labels, turn.selection]
            for trained in (turn.student, turn.control):
                found += [trained.training, trained.finetuning] if trained is not None else []
        return [stage for stage in (*found, self.judgement) if stage is not None]

    def models(self) -> list[Model]:
        """Every model that is judged, in order of training."""
        trained = [model for turn in self.iterations for model in (turn.student, turn.control)]
        return [self.teacher, *(model for model in trained if model is not None)]


def build_graph(config: Config, listing: str, run: Path) -> Graph:
    """The stages of `config` on inputs whose listing has the fingerprint `listing`, kept under `run`.

    Raises:
        InputError: a training has no length.
    """
    _require_lengths(config)
    data = _stage("data", run / "data", config=_significant(config.data), listing=listing, seed=config.seed)
    first = run / "iteration-0"
    pretraining = None
    if config.pretrain is not None:
        pretraining = _training("pretraining", first / "pretraining", config.pretrain, data, config.seed)
    started: dict[str, object] = {"initial": pretraining.fingerprint} if pretraining else {}
    teacher, *companions = (
        _model(0, "teacher", first / name, config.teacher, data, config.seed, numbered, name)
        for name, numbered in _teachers(config.ensemble, started)
    )
    filter_model, filter_labels = None, None
    if config.filter is not None and config.students:
        said = _significant(config.students[0].pseudo_label)
        filter_model = _training("filter", first / "filter", config.filter, data, config.seed)
        path = run / "iteration-1" / "filter-labels"
        filter_labels = _stage("filter-labels", path, config=said, model=filter_model.fingerprint)
    turns: list[Iteration] = []
    for index in range(1, len(config.students) + 1):
        before = turns[-1] if turns else None
        speakers = [before.student] if before else [teacher, *companions]
        turns.append(_iteration(config, index, run, data, speakers, filter_labels, before))
    graph = Graph(
        data, pretraining, teacher, tuple(companions), filter_model, filter_labels, tuple(turns), data
    )
    return dataclasses.replace(graph, judgement=_judgement(config, run, graph))


def _require_lengths(config: Config) -> None:
    named = {"teacher": config.teacher, "filter": config.filter, "pretrain": config.pretrain}
    named |= {f"students.{number}": student for number, student in enumerate(config.students)}
    for name, learner in named.items():
        given = learner is None or learner.train.epochs is not None or learner.train.steps is not None
        require(given, f"{name}.train has neither epochs nor steps; give one of the two")


def _teachers(ensemble: int, started: dict[str, object]) -> Iterator[tuple[str, dict[str, object]]]:
    """(name, what sets it apart) of each; a lone one is as it would be without the choice."""
    yield "teacher", started
    for number in range(2, ensemble + 1):
        yield f"teacher-{number}", started | {"number": number}


def _judgement(config: Config, run: Path, graph: Graph) -> Stage:
    stages = [stage for model in graph.models() for stage in (model.training, model.finetuning) if stage]
    judgement = _stage(
        "judgement",
        run / "verdict.json",
        config=_significant(config.evaluate),
        truth=config.data.pool_truth,
        **{stage.name: stage.fingerprint for stage in stages},
    )
    evaluations = [
        run / f"iteration-{index}" / "evaluation.json" for index in range(len(config.students) + 1)
    ]
    galleries = [file.with_name("gallery.json") for file in evaluations[1:]]
    return dataclasses.replace(judgement, also=(run / "metrics.jsonl", *evaluations, *galleries))


def _iteration(
    config: Config,
    index: int,
    run: Path,
    data: Stage,
    speakers: list[Model],
    filter_labels: Stage | None,
    before: Iteration | None,
) -> Iteration:
    student, seed, folder = config.students[index - 1], config.seed, run / f"iteration-{index}"
    first, *others = [speaker.last.fingerprint for speaker in speakers]
    labels = _stage(
        f"labels-{index}",
        folder / "labels",
        config=_significant(student.pseudo_label),
        model=[first, *others] if others else first,
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
        "initial": first if student.init == "teacher" else None,
        "iteration": index,
    }
    said = student.pseudo_label
    taught: dict[str, object] = {"selection": selection.fingerprint, "joint": student.joint}
    taught |= {name: getattr(said, name) for name in ("hard", "on_the_fly", "match_temperature")}
    trained = _model(index, "student", folder / "student", student, data, seed, shared | taught)
    control = None
    if config.control and index == len(config.students):
        control = _model(index, "control", folder / "control", student, data, seed, shared)
    return Iteration(index, student, labels, selection, trained, control)


def _model(
    iteration: int,
    role: str,
    path: Path,
    learner: TeacherConfig,
    data: Stage,
    seed: int,
    inputs: Mapping[str, object],
    name: str | None = None,
) -> Model:
    name = name or f"{role}-{iteration}"
    training = _training(name, path, learner, data, seed, **inputs)
    finetuning = None
    if learner.finetune is not None:
        finetuning = _stage(
            f"{name}-finetune",
            path / FINETUNE,
            config=_significant(learner.finetune),
            model=training.fingerprint,
        )
    return Model(iteration, role, training, finetuning)


def _training(
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
