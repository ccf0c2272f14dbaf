"""Objects that all stages of a run share: configuration, run directory, images and device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from noisystudent.config import Config, LearnerConfig, StudentConfig, TeacherConfig
from noisystudent.config.run import input_side
from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet
from noisystudent.data.prepare import Dataset
from noisystudent.data.workers import worker_count
from noisystudent.distributed import local_size
from noisystudent.errors import InputError
from noisystudent.run.backbones import backbone_key
from noisystudent.run.graph import Graph, Model
from noisystudent.run.rundir import EmbeddingsDir, ModelDir, RunDir, SetName
from noisystudent.runtime import torch_seed
from noisystudent.self_training.finetune import finetuning
from noisystudent.self_training.training import Training


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """A run in progress.

    Attributes:
        config: configuration of the run.
        run: run directory.
        graph: all stages of the run.
        dataset: images of all sets.
        device: device that models are trained and evaluated on.
        progress: receives lines and progress, and stops the run.
        others: run directories whose cached features are copied.
    """

    config: Config
    run: RunDir
    graph: Graph
    dataset: Dataset
    device: torch.device
    progress: Progress
    others: Sequence[Path] = ()

    def training(self, learner: LearnerConfig, folder: ModelDir, stream: str) -> Training:
        """Return a training without pool images.

        A student and its control have the same stream, `iteration-<number>`, so they get the same noise and
        the same order of labelled images.

        Args:
            learner: network, input noise and settings of the training.
            folder: output folder.
            stream: name that the seed of the training is derived from, together with the seed of the run.
        """
        key = backbone_key(self.config, learner)
        return Training(
            learner=learner,
            dataset=self.dataset,
            folder=folder,
            seed=torch_seed(self.config.seed, stream),
            resolution=input_side(self.config, learner),
            device=self.device,
            workers=worker_count(self.config.data.workers, local_size()),
            # A control has the ratio too: its batches are as large as those of its student.
            ratios=_ratios(learner),
            cache=None if key is None else EmbeddingsDir(self.graph.embeddings[key].path),
            evaluation=self.config.evaluate,
        )

    def on_pool_folders(self, learner: LearnerConfig, folder: ModelDir) -> Training:
        """Return a training that predicts the folder names of the pool images.

        It is not evaluated on val, because folder names are other classes than those of val.

        Raises:
            InputError: the pool has fewer than two folder names.
        """
        pool, names = self.dataset.pool, self.dataset.tags
        if len(names) < 2:
            raise InputError(f"pretrain needs a pool in two or more named folders; this one has {len(names)}")
        # Images without a folder name have the label -1.
        labeled = replace(pool.subset(np.flatnonzero(pool.labels >= 0)), classes=names)
        dataset = replace(self.dataset, classes=names, labeled=labeled)
        return replace(self.training(learner, folder, "pretraining"), dataset=dataset, curve=False)

    @property
    def judged(self) -> tuple[SetName, ImageSet]:
        """Name and images of the set that models are compared on: test, or val if there is no test."""
        test = self.dataset.test
        return ("val", self.dataset.val) if test is None else ("test", test)

    def trainings(self, model: Model) -> tuple[Training, Training]:
        """Return the first and the last training of a model; they are the same object without fine-tuning."""
        # The first teacher has the same seed with and without others.
        number = (
            model.training.name.removeprefix("teacher").replace("-", "/") if model.role == "teacher" else ""
        )
        stream = f"iteration-{model.iteration}{number}"
        first = self.training(model.config, ModelDir(model.training.path), stream)
        return first, self.last_training(first, model)

    def last_training(self, first: Training, model: Model) -> Training:
        """Return the fine-tuning of a model if it has one, otherwise `first`."""
        config = first.learner.finetune if isinstance(first.learner, TeacherConfig) else None
        return first if model.finetuning is None or config is None else finetuning(first, config)


def _ratios(learner: LearnerConfig) -> tuple[int, ...]:
    """Pool images per labelled image in each phase: all whole numbers from the first to the last."""
    if not isinstance(learner, StudentConfig):
        return (0,)
    return tuple(range(learner.unlabeled_ratio[0], learner.unlabeled_ratio[-1] + 1))
