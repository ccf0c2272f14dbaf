"""The graph of stages of a run: its models and iterations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile

from noisystudent.config import StudentConfig, TeacherConfig
from noisystudent.run.stages import Stage, state

BEFORE = " before finetuning"
"""Suffix of the role for the scores of a model before its fine-tuning, in evaluation.json."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the run, with its fine-tuning.

    Attributes:
        iteration: number of the iteration; 0 for the teacher.
        role: one of `ROLES`, fold, or existing: a first teacher that is not trained.
        config: its section of the configuration.
        training: stage of the training; of an existing teacher the stage that reads it.
        finetuning: stage of the fine-tuning after it; None if the configuration has none.
    """

    iteration: int
    role: str
    config: TeacherConfig
    training: Stage
    finetuning: Stage | None = None

    @property
    def last(self) -> Stage:
        """Stage whose weights are evaluated and label the pool: fine-tuning if any, otherwise training."""
        return self.finetuning or self.training


@dataclass(frozen=True, slots=True)
class Iteration:
    """One iteration of the loop: label the pool, select images, train a student.

    Attributes:
        index: number of the iteration, from 1 on.
        config: configuration of the student.
        labels: stage in which the teacher labels the pool.
        selection: stage that selects pool images.
        student: the student.
        controls: models trained on labelled images alone, in the last iteration; otherwise none.
        chosen: which settings in `config` were chosen out of fold, and why; "" if none were.
    """

    index: int
    config: StudentConfig
    labels: Stage
    selection: Stage
    student: Model
    controls: tuple[Model, ...]
    chosen: str = ""

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that are trained, the student first."""
        return (self.student, *self.controls)


@dataclass(frozen=True, slots=True)
class Graph:
    """Every stage of a run.

    Attributes:
        data: scan of the images.
        labeled: fingerprint of the listed images that are not of the pool.
        embeddings: features of frozen backbones, `backbone_key` -> stage; empty without such networks.
        pretraining: training on the folder names of the pool; None if it is not configured.
        folds: teachers that are trained without a part of the labelled images each; none without students.
        out_of_fold: their predictions, each on the images that it has not seen; None without folds.
        teachers: the first teachers, in the order of the configuration.
        filter: training of the model that filters the pool in place of the teacher; None if there is none.
        filter_labels: labelling of the pool by the filter; None if there is none.
        iterations: one for each student, in order.
        judgement: evaluation of all models, and the verdict.
    """

    data: Stage
    labeled: str
    embeddings: Mapping[str, Stage]
    pretraining: Stage | None
    folds: tuple[Model, ...]
    out_of_fold: Stage | None
    teachers: tuple[Model, ...]
    filter: Stage | None
    filter_labels: Stage | None
    iterations: tuple[Iteration, ...]
    judgement: Stage

    @property
    def teacher(self) -> Model | None:
        """The first of the first teachers that this run trains; None if it trains none."""
        return next((model for model in self.teachers if model.role == "teacher"), None)

    def stages(self) -> list[Stage]:
        """Return all stages in the order in which they run."""
        stages: list[Stage | None] = [self.data]
        stages += [model.training for model in self.teachers if model.role == "existing"]
        stages += [*self.embeddings.values(), self.filter, self.filter_labels, self.pretraining]
        for model in self.folds:
            stages += [model.training, model.finetuning]
        stages.append(self.out_of_fold)
        for model in self.teachers:
            stages += [model.training, model.finetuning] if model.role == "teacher" else []
        for iteration in self.iterations:
            stages += [iteration.labels, iteration.selection]
            for model in iteration.models:
                stages += [model.training, model.finetuning]
        return [stage for stage in (*stages, self.judgement) if stage is not None]

    def labelings(self) -> list[Stage]:
        """Return the labellings of the pool, in order."""
        stages = [self.filter_labels, *(iteration.labels for iteration in self.iterations)]
        return [stage for stage in stages if stage is not None]

    def damage_before(self, labels: Stage) -> str | None:
        """Return what is damaged of the files that a labelling may be made from; None if nothing is.

        They are those of all stages before it, whose contents are compared, but for other pseudo-labels.
        """
        others = self.labelings()
        for stage in takewhile(lambda each: each != labels, self.stages()):
            problems = () if stage in others else state(stage, contents=True).problems
            if problems:
                return f"{stage.name}: {problems[0]}"
        return None

    def models(self) -> list[Model]:
        """Return every network that is evaluated, in the order of training."""
        first = [] if self.teacher is None else [self.teacher]
        return [*first, *(model for iteration in self.iterations for model in iteration.models)]
