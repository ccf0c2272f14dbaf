"""How fast the parts of a run are on this machine; equal trainings and predictions are measured once."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from noisystudent import memory
from noisystudent.config import PseudoLabelConfig
from noisystudent.console import Progress
from noisystudent.data.loader import OnlineTeacher, SelectedPool
from noisystudent.data.prepare import Dataset
from noisystudent.run.backbones import embedded
from noisystudent.run.fingerprint import fingerprint
from noisystudent.run.graph import Iteration, Model
from noisystudent.run.rundir import EmbeddingsDir, ModelDir
from noisystudent.self_training import robustness
from noisystudent.self_training.context import Context
from noisystudent.self_training.embed_stage import embed_by
from noisystudent.self_training.existing import existing
from noisystudent.self_training.first_teachers import Teachers, labeler
from noisystudent.self_training.labels import online_teacher
from noisystudent.self_training.measure import (
    MeasuredTraining,
    key_of,
    measure_prediction,
    measure_training,
)
from noisystudent.self_training.predict import with_transforms
from noisystudent.self_training.training import Training, predictor_of_sets

_SMALL, _LARGE = 2, 10  # images of two measurements of robustness, whose difference has no fixed part


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over images, with all views of each.

    Attributes:
        seconds: duration of an image.
        peak_bytes: largest memory.
        disk_bytes: size of what is stored of an image.
    """

    seconds: float
    peak_bytes: int
    disk_bytes: float = 0.0


@dataclass(slots=True)
class Measurements:
    """All that was measured so far, also for other configurations of the same images."""

    trainings: dict[str, MeasuredTraining] = field(default_factory=dict)
    passes: dict[str, Pass] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Measures what is needed of a run when it is needed.

    Attributes:
        context: the run in a temporary folder, on a stand-in of its images, see `Sample.whole`.
        few: the images of the stand-in, each once.
        known: results, with those of other configurations.
    """

    context: Context
    few: Dataset
    known: Measurements

    def training(self, training: Training, pool: SelectedPool | None = None) -> MeasuredTraining:
        """Measure a training. It starts from random weights, whatever it starts from in the run."""
        if training.cache is not None:
            self.embedding(training.cache)
        model = replace(training.learner.model, pretrained=False)
        plain = replace(
            training, learner=replace(training.learner, model=model), initial=None, new_head=False
        )
        # Labels that are made in the step take the time of their teachers.
        online = pool is not None and isinstance(pool.targets, OnlineTeacher)
        key = self._key(key_of(plain, pool=pool is not None), str(plain.folder.path) if online else "")
        if key not in self.known.trainings:
            self.known.trainings[key] = measure_training(plain, pool, self.context.progress)
        return self.known.trainings[key]

    def labeling(self, trained: MeasuredTraining, labels: PseudoLabelConfig) -> Pass:
        """Measure how a teacher labels the pool, with all transforms."""
        teacher = trained.training
        views = [labels.flip, labels.scales, labels.noise, labels.batch_size]
        key = self._key("labeling", _network(teacher), views)
        if key not in self.known.passes:
            model, stream = labeler(predictor_of_sets(teacher), teacher, labels)
            limited, count = model.limited(labels.batch_size), len(self.context.dataset.pool)
            self.known.passes[key] = Pass(*measure_prediction(limited, stream, count, self.context.progress))
        return self.known.passes[key]

    def evaluation(self, trained: MeasuredTraining) -> Pass:
        """Measure how a model predicts val or test."""
        key = self._key("evaluation", _network(trained.training))
        if key not in self.known.passes:
            model, sets = predictor_of_sets(trained.training), trained.training.sets
            images = max((one for one in (sets.val, sets.test) if one is not None), key=len)
            stream = partial(model.requested_views, images)
            self.known.passes[key] = Pass(
                *measure_prediction(model, stream, len(images), self.context.progress)
            )
        return self.known.passes[key]

    def existing(self, model: Model, labels: PseudoLabelConfig | None) -> Pass:
        """Measure a first teacher that is not trained: on the pool with transforms, or on val for None."""
        key = self._key("existing", model.config, labels)
        if key not in self.known.passes:
            network, _ = existing(model).predictor(self.context)
            images = self.context.dataset.val
            if labels is not None:
                network, images = with_transforms(network, labels), self.context.dataset.pool
            stream = partial(network.requested_views, images)
            self.known.passes[key] = Pass(
                *measure_prediction(network, stream, len(images), self.context.progress)
            )
        return self.known.passes[key]

    def embedding(self, cache: EmbeddingsDir) -> Pass:
        """Compute the features of the few images, in the folder `cache`, and measure it."""
        stages = self.context.graph.embeddings
        name = next(name for name, stage in stages.items() if stage.path == cache.path)
        key = self._key("embedding", name)
        if key not in self.known.passes:
            laps = _Laps(self.context.progress)
            few = replace(self.context, dataset=self.few, progress=laps)
            learner, with_pool = embedded(self.context.config)[name]
            with memory.peak(self.context.device) as peak:
                embed_by(few, stages[name], learner, pool=with_pool)
            files = (file for file in cache.path.rglob("*.npy"))
            size = sum(file.stat().st_size for file in files)
            self.known.passes[key] = Pass(laps.seconds, peak.used, size / laps.images)
        return self.known.passes[key]

    def robustness(self, models: Mapping[robustness.Key, MeasuredTraining]) -> float:
        """Measure the robustness tests of all models: seconds of an image."""
        networks = [(*name, *_network(measured.training)) for name, measured in models.items()]
        key = self._key("robustness", self.context.config.evaluate, networks)
        if key not in self.known.passes:
            self.known.passes[key] = Pass(self._robustness(models, f"robustness-{key}"), 0)
        return self.known.passes[key].seconds

    def _robustness(self, models: Mapping[tuple[int, str], MeasuredTraining], place: str) -> float:
        """Seconds of an image; `place` is a new folder in that of the measurements."""
        config, took = self.context.config, []
        for count in (_SMALL, _LARGE):
            evaluate = replace(config.evaluate, sample=count)
            context = replace(self.context, config=replace(config, evaluate=evaluate))
            trainings = {}
            for (iteration, role), measured in models.items():
                # Each model has a folder of its own, because its results are kept there.
                trained = measured.training
                folder = ModelDir(self.context.run.path / f"{place}-{count}" / f"{role}-{iteration}")
                folder.path.mkdir(parents=True)
                os.link(trained.folder.weights, folder.weights)
                trainings[iteration, role] = replace(trained, folder=folder)
            begin = time.perf_counter()
            robustness.measure(context, trainings)
            took.append(time.perf_counter() - begin)
        return max(0.0, took[1] - took[0]) / (_LARGE - _SMALL)

    def pool(self, iteration: Iteration, teachers: Sequence[MeasuredTraining]) -> SelectedPool | None:
        """Return all pool images with equal targets for all classes, or with a teacher that labels them."""
        images, labels = len(self.context.dataset.pool), iteration.config.pseudo_label
        if images == 0:
            return None
        rows, repeats = np.arange(images), np.ones(images, np.int32)
        if labels.on_the_fly:
            trained = tuple(teacher.training for teacher in teachers)
            equal = Teachers(trained, (1 / len(trained),) * len(trained), None)
            return SelectedPool(rows, repeats, online_teacher(self.context, equal, labels))
        classes = len(self.context.dataset.classes)
        return SelectedPool(rows, repeats, lambda at: np.full((len(at), classes), 1 / classes, np.float32))

    def _key(self, *parts: object) -> str:
        return fingerprint(self.context.config.data, *parts)


def _network(training: Training) -> list[object]:
    """What the time of a prediction depends on, with the images."""
    features = None if training.cache is None else str(training.cache.path)
    return [training.learner.model, training.resolution, training.learner.augment.flip, features]


class _Laps(Progress):
    """Measures the time of an image from the first batch of features on, before which models are loaded.

    Attributes:
        images: images of all sets.
    """

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress.stop)
        self.images = 0
        self._first = 0
        self._begin = self._end = 0.0
        self._done: dict[str, int] = {}

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        """Remember when images were done."""
        self._done[task] = done
        self.images, self._end = sum(self._done.values()), time.perf_counter()
        if self._begin == 0.0:
            self._first, self._begin = self.images, self._end

    @property
    def seconds(self) -> float:
        """Duration of an image."""
        return (self._end - self._begin) / max(1, self.images - self._first)
