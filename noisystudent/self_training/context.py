"""What every stage of one run shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from noisystudent.config import Config, LearnerConfig, StudentConfig
from noisystudent.data.prepare import Dataset
from noisystudent.data.workers import worker_count
from noisystudent.errors import InputError
from noisystudent.graph import Graph
from noisystudent.runtime import StopFlag, Voice, torch_seed
from noisystudent.self_training.learner import Lesson


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """The run in hand."""

    config: Config
    run: Path
    graph: Graph
    dataset: Dataset
    device: torch.device
    stop: StopFlag
    voice: Voice

    @property
    def workers(self) -> int:
        """Decoding processes."""
        return worker_count(self.config.data.workers)

    def lesson(self, learner: LearnerConfig, folder: Path, stream: str) -> Lesson:
        """A training without pool images; `stream` names what is random in it.

        A student and its control have one stream, `iteration-<number>`, hence the same noise and order.
        """
        ratio = learner.unlabeled_ratio if isinstance(learner, StudentConfig) else 0
        return Lesson(
            learner=learner,
            dataset=self.dataset,
            folder=folder,
            seed=torch_seed(self.config.seed, stream),
            resolution=learner.model.resolution or self.config.data.resolution,
            device=self.device,
            workers=self.workers,
            ratio=ratio,
            scored=self.config.evaluate.batch_size,
        )

    def tagged(self, learner: LearnerConfig, folder: Path) -> Lesson:
        """A training on the pool under the names of its folders; nothing of it is compared with val.

        Raises:
            InputError: the pool has fewer than two such names.
        """
        pool, tags = self.dataset.pool, self.dataset.tags
        if len(tags) < 2:
            raise InputError(f"pretrain needs a pool in two or more named folders; this one has {len(tags)}")
        named = replace(pool.subset(np.flatnonzero(pool.labels >= 0)), classes=tags)
        dataset = replace(self.dataset, classes=tags, labeled=named)
        return replace(self.lesson(learner, folder, "pretraining"), dataset=dataset, looks=False)
