"""What each stage of a run will take, from a few measured steps and batches; nothing is left behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from noisystudent import memory
from noisystudent.config import FirstTeacherConfig, PseudoLabelConfig, StudentConfig
from noisystudent.config.run import labeling_teachers
from noisystudent.data.sample import Sample
from noisystudent.pseudo_label.parts import DENSE_CLASSES
from noisystudent.run.backbones import embedded
from noisystudent.run.estimate import RunPlan, StageEstimate
from noisystudent.run.graph import Iteration, Model
from noisystudent.run.rundir import EmbeddingsDir, ModelDir
from noisystudent.run.stages import Stage
from noisystudent.self_training import pool
from noisystudent.self_training.context import Context
from noisystudent.self_training.existing import labeled_sets
from noisystudent.self_training.folds import weight_decays
from noisystudent.self_training.measure import MeasuredTraining
from noisystudent.self_training.rates import Pass, Rates
from noisystudent.self_training.training import Training
from noisystudent.train.loop import steps_between_evaluations

_LABEL_BYTES = 60  # of an image in a part of pseudo-labels, without its probabilities in float16

_FEW_PIXELS = 1e7  # of all batches: 200 images of 224 pixels, seconds for any network
_MORE_EVALUATIONS = 2  # of val after a training: for its temperature, and for its predictions

_Planned = tuple[Stage, str, Callable[[], StageEstimate]]


@dataclass(frozen=True, slots=True)
class Stages:
    """Estimates the stages of a run from what is measured when it is needed.

    Attributes:
        context: the run on a stand-in of its images, in a temporary folder.
        sample: the images.
        rates: the measurements.
        done: names of the stages that are left out.
    """

    context: Context
    sample: Sample
    rates: Rates
    done: Collection[str]

    def rough(self) -> float:
        """Return the seconds of all trainings, done ones too, at the pace of the first; one is measured.

        Features count as they are measured. Of very few pixels nothing is measured.
        """
        graph = self.context.graph
        trainings = [*self._trainings()]
        pixels = sum(training.images * training.resolution**2 for training in trainings)
        if not graph.embeddings and pixels < _FEW_PIXELS:
            return 0.0
        first = self._measured(self._models()[0])
        pace = max(seconds / sum(rows) for rows, seconds in first.seconds.items())
        features = sum(self._features(stage).seconds for stage in graph.embeddings.values())
        return features + pace * sum(training.images for training in trainings)

    def _trainings(self) -> Iterator[Training]:
        """Yield every training of the run."""
        graph, config = self.context.graph, self.context.config
        teachers = (model for model in graph.teachers if model.role == "teacher")
        students = (model for iteration in graph.iterations for model in iteration.models)
        for model in (*graph.folds, *teachers, *students):
            first = self._training(model)
            times = len(weight_decays(self.context)) if model.role == "fold" else 1
            yield from [first] * times
            if model.finetuning is not None:
                yield self.context.last_training(first, model)
        if config.pretrain is not None and graph.pretraining is not None:
            yield self.context.on_pool_folders(config.pretrain, ModelDir(graph.pretraining.path))
        if config.filter is not None and graph.filter is not None:
            yield self.context.training(config.filter, ModelDir(graph.filter.path), "filter")

    def plan(self) -> RunPlan:
        """Return the estimate of every stage that is not done."""
        every = {stage.name: (field, work) for stage, field, work in self._stages()}
        names = [stage.name for stage in self.context.graph.stages() if stage.name not in self.done]
        return RunPlan(
            stages=tuple(every[name][1]() for name in names),
            memory=memory.limit(self.context.device),
            fields={name: every[name][0] for name in names},
        )

    def _stages(self) -> Iterator[_Planned]:
        """Yield every stage in any order, with the field that changes its memory; nothing is measured yet."""
        context, graph, config = self.context, self.context.graph, self.context.config
        yield graph.data, "data.resolution", self._data
        for stage in graph.embeddings.values():
            yield stage, "data.resolution", partial(self._features, stage)
        if graph.pretraining is not None and config.pretrain is not None:
            training = context.on_pool_folders(config.pretrain, ModelDir(graph.pretraining.path))
            work = partial(self._plain, graph.pretraining, training)
            yield graph.pretraining, "pretrain.train.accumulate", work
        if graph.filter is not None and graph.filter_labels is not None and config.filter is not None:
            training = context.training(config.filter, ModelDir(graph.filter.path), "filter")
            yield graph.filter, "filter.train.accumulate", partial(self._plain, graph.filter, training)
            work = partial(self._filter_labels, graph.filter_labels, training)
            yield graph.filter_labels, "students.0.pseudo_label.batch_size", work
        for number, model in enumerate(graph.teachers):
            if model.role == "existing":
                yield model.training, "data.resolution", partial(self._existing, model)
            else:
                yield from self._model(model, f"teachers.{number}" if config.teachers else "teacher")
        for model in graph.folds:
            yield from self._model(model, "teacher")
        if graph.out_of_fold is not None:
            yield graph.out_of_fold, "evaluate.batch_size", partial(self._out_of_fold, graph.out_of_fold)
        for iteration in graph.iterations:
            section = f"students.{iteration.index - 1}"
            yield iteration.labels, f"{section}.pseudo_label.batch_size", partial(self._labels, iteration)
            yield iteration.selection, f"{section}.selection", partial(_unmeasured, iteration.selection)
            for model in iteration.models:
                yield from self._model(model, section)
        yield graph.judgement, "evaluate.batch_size", self._judgement

    def _model(self, model: Model, section: str) -> Iterator[_Planned]:
        """Yield the training of a model, and its fine-tuning if it has one."""
        field = f"{section}.train.accumulate"
        yield model.training, field, partial(self._first_training, model)
        if model.finetuning is not None:
            first = self._training(model)
            last = self.context.last_training(first, model)
            yield model.finetuning, field, partial(self._plain, model.finetuning, last)

    def _training(self, model: Model) -> Training:
        """Return the first training of a model, with a pool of the size of all pool images."""
        context, graph = self.context, self.context.graph
        if model.role == "fold":  # as long as the first teacher's, on fewer images
            assert graph.teacher is not None
            return context.trainings(graph.teacher)[0]
        if model.role == "teacher":
            return context.trainings(model)[0]
        iteration = graph.iterations[model.iteration - 1]
        selected = _most_selected(iteration.config, context)
        if model.role == "student":
            return pool.student_training(context, iteration, None, selected)
        return pool.control(context, iteration, model, None, selected=selected)

    def _models(self) -> list[Model]:
        """Return the models that are trained."""
        return [model for model in self.context.graph.models() if model.role != "existing"]

    def _measured(self, model: Model) -> MeasuredTraining:
        """Measure the first training of a model."""
        given = None
        if model.role == "student":
            iteration = self.context.graph.iterations[model.iteration - 1]
            online = self._teachers(iteration) if iteration.config.pseudo_label.on_the_fly else ()
            given = self.rates.pool(iteration, [self._last(one) for one in online])
        return self.rates.training(self._training(model), given)

    def _last(self, model: Model) -> MeasuredTraining:
        """Measure the last training of a model."""
        if model.finetuning is None:
            return self._measured(model)
        return self.rates.training(self.context.last_training(self._training(model), model))

    def _teachers(self, iteration: Iteration) -> list[Model]:
        """Return the models that label the pool for an iteration."""
        graph = self.context.graph
        if iteration.index > 1:
            return [graph.iterations[iteration.index - 2].student]
        return [graph.teachers[place] for place in labeling_teachers(self.context.config)]

    def _data(self) -> StageEstimate:
        sample = self.sample
        return _estimate(
            self.context.graph.data, sample.seconds, images=sample.images, disk_bytes=sample.disk_bytes
        )

    def _features(self, stage: Stage) -> StageEstimate:
        sets, cache = self.context.dataset, EmbeddingsDir(stage.path)
        done = self.rates.embedding(cache)
        key = next(key for key, one in self.context.graph.embeddings.items() if one == stage)
        with_pool = embedded(self.context.config)[key][1]
        given = [sets.labeled, sets.val, sets.test, sets.pool if with_pool else None]
        images = sum(len(one) for one in given if one is not None)
        size = round(images * done.disk_bytes) + cache.backbone.stat().st_size
        return _estimate(
            stage, images * done.seconds, images=images, peak_bytes=done.peak_bytes, disk_bytes=size
        )

    def _plain(self, stage: Stage, training: Training) -> StageEstimate:
        """Estimate a training without pool images."""
        return self._trained(stage, training, self.rates.training(training), pooled=False)

    def _first_training(self, model: Model) -> StageEstimate:
        # Heads of the folds are trained with several weight decays.
        times = len(weight_decays(self.context)) if model.role == "fold" else 1
        pooled = model.role == "student" and len(self.context.dataset.pool) > 0
        one = self._trained(model.training, self._training(model), self._measured(model), pooled=pooled)
        return replace(one, steps=times * one.steps, seconds=times * one.seconds)

    def _trained(
        self, stage: Stage, training: Training, measured: MeasuredTraining, *, pooled: bool
    ) -> StageEstimate:
        phases = training.phases(pool=pooled)
        seconds = sum(phase.steps * measured.seconds[phase.rows] for phase in phases)
        sets = self.context.dataset
        if training.curve:
            between = steps_between_evaluations(training.config, training.total_steps)
            passes = math.ceil(training.total_steps / between) + _MORE_EVALUATIONS
            seconds += passes * len(sets.val) * self.rates.evaluation(measured).seconds
        judged = len(sets.val) + (0 if sets.test is None else len(sets.test))
        disk = measured.disk_bytes + 4 * judged * len(sets.classes)
        return replace(
            _estimate(
                stage, seconds, images=training.images, peak_bytes=measured.peak_bytes, disk_bytes=disk
            ),
            steps=training.total_steps,
        )

    def _existing(self, model: Model) -> StageEstimate:
        images = sum(map(len, labeled_sets(self.context).values()))
        done = self._existing_pass(model, None)
        return _estimate(model.training, images * done.seconds, images=images, peak_bytes=done.peak_bytes)

    def _existing_pass(self, model: Model, labels: PseudoLabelConfig | None) -> Pass:
        assert isinstance(model.config, FirstTeacherConfig)
        # Probabilities that were made elsewhere are read from a file.
        return Pass(0.0, 0) if model.config.labels_from else self.rates.existing(model, labels)

    def _labels(self, iteration: Iteration) -> StageEstimate:
        labels = iteration.config.pseudo_label
        passes = [
            self._existing_pass(one, labels)
            if one.role == "existing"
            else self.rates.labeling(self._last(one), labels)
            for one in self._teachers(iteration)
        ]
        return self._pool_pass(iteration.labels, labels, passes)

    def _filter_labels(self, stage: Stage, training: Training) -> StageEstimate:
        labels = self.context.config.students[0].pseudo_label
        return self._pool_pass(stage, labels, [self.rates.labeling(self.rates.training(training), labels)])

    def _pool_pass(self, stage: Stage, labels: PseudoLabelConfig, passes: Sequence[Pass]) -> StageEstimate:
        images, classes = len(self.context.dataset.pool), len(self.context.dataset.classes)
        probs = classes if classes <= DENSE_CLASSES else 2 * labels.top_k  # with the number of each class
        return _estimate(
            stage,
            images * sum(one.seconds for one in passes),
            images=images,
            peak_bytes=max(one.peak_bytes for one in passes),
            disk_bytes=images * (_LABEL_BYTES + 2 * probs),
        )

    def _out_of_fold(self, stage: Stage) -> StageEstimate:
        teacher, labels = self.context.graph.teacher, self.context.config.students[0].pseudo_label
        assert teacher is not None
        images = len(self.context.dataset.labeled) * len(weight_decays(self.context))
        done = self.rates.labeling(self._last(teacher), labels)
        return _estimate(stage, images * done.seconds, images=images, peak_bytes=done.peak_bytes)

    def _judgement(self) -> StageEstimate:
        """Estimate predictions of test, which other stages have not made, and the robustness tests."""
        context = self.context
        images = len(context.judged[1])
        measured = {(model.iteration, model.role): self._measured(model) for model in self._models()}
        passes = [self.rates.evaluation(self._last(model)) for model in self._models()]
        seconds = images * sum(one.seconds for one in passes) if context.dataset.test is not None else 0.0
        if context.config.evaluate.tests:
            tested = min(images, context.config.evaluate.sample or images)
            seconds += tested * self.rates.robustness(measured)
        return _estimate(
            context.graph.judgement, seconds, images=0, peak_bytes=max(one.peak_bytes for one in passes)
        )


def _most_selected(student: StudentConfig, context: Context) -> int:
    """Return the largest number of images in an epoch of the pool."""
    per_class = student.selection.per_class
    return len(context.dataset.pool) if per_class is None else per_class * len(context.dataset.classes)


def _unmeasured(stage: Stage) -> StageEstimate:
    return StageEstimate(stage=stage.name)


def _estimate(
    stage: Stage, seconds: float, *, images: int, peak_bytes: int = 0, disk_bytes: int = 0
) -> StageEstimate:
    return StageEstimate(
        stage=stage.name,
        seconds=seconds,
        images_per_second=images / seconds if seconds else 0.0,
        peak_bytes=peak_bytes,
        disk_bytes=disk_bytes,
    )
