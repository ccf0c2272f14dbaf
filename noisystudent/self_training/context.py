"""What every stage of one run shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from noisystudent.config import Config, LearnerConfig, StudentConfig
from noisystudent.data.prepare import Dataset
from noisystudent.data.workers import worker_count
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

    def lesson(self, learner: LearnerConfig, folder: Path, iteration: int, role: str = "student") -> Lesson:
        """A training without pool images; a student and its control share one seed, hence noise and order."""
        ratio = learner.unlabeled_ratio if isinstance(learner, StudentConfig) else 0
        stream = "filter" if role == "filter" else f"iteration-{iteration}"
        return Lesson(
            learner=learner,
            dataset=self.dataset,
            folder=folder,
            seed=torch_seed(self.config.seed, stream),
            resolution=learner.model.resolution or self.config.data.resolution,
            device=self.device,
            workers=self.workers,
            ratio=ratio,
        )
