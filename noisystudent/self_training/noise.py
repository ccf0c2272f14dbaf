"""What is random in a lesson, drawn for the labelled rows of a batch and its pool rows apart."""

from __future__ import annotations

import torch
from torch import Tensor

from noisystudent.augment import ops, plan
from noisystudent.augment.policies import Policy
from noisystudent.augment.program import Program, compile_plan
from noisystudent.config import LearnerConfig
from noisystudent.models.registry import Classifier
from noisystudent.records import Batch


class LessonNoise:
    """Input noise and model noise, each a pure function of (seed, step) and the kind of device.

    Labelled and pool rows have streams of their own, so what happens to a labelled image does not depend on
    the pool.

    Args:
        model: whose dropout and stochastic depth are drawn.
        learner: noise of each kind, and which rows get it.
        policy: of the input noise.
        seed: of the run.
        resolution: side in pixels.
    """

    def __init__(
        self, model: Classifier, learner: LearnerConfig, policy: Policy, seed: int, resolution: int
    ) -> None:
        self._model, self._learner, self._policy = model, learner, policy
        self._seed, self._side = seed, resolution
        self._plan = plan.identity(policy, 0, resolution)
        self._program: Program | None = None  # the plan on a GPU, at an address that captured kernels know

    def draw(self, batch: Batch, step: int) -> None:
        """Fix the noise of a step; see `train.step.Noise`."""
        sizes = len(batch.labels), len(batch.pool_targets)
        config = self._learner.augment
        parts = (("labeled", config.labeled, sizes[0]), ("pool", config.pool, sizes[1]))
        self._plan = plan.join([self._drawn(step, *part) for part in parts])
        if batch.images.is_cuda:
            self._load(batch.images.device)
        active = torch.empty(sum(sizes), dtype=torch.bool, device=batch.images.device)
        active[: sizes[0]] = self._learner.model.noise_labeled
        active[sizes[0] :] = self._learner.model.noise_pool
        self._model.noise.draw(self._seed, step, active, split=sizes[0])

    def apply(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> the same with the input noise last drawn."""
        return ops.apply(images, self._plan) if self._program is None else ops.run(images, self._program)

    def _drawn(self, step: int, stream: str, on: bool, rows: int) -> plan.Plan:
        if not on:
            return plan.identity(self._policy, rows, self._side)
        return plan.draw(self._policy, self._seed, stream, step, rows, self._side)

    def _load(self, device: torch.device) -> None:
        drawn = compile_plan(self._plan, device, grouped=False)
        if self._program is None:
            self._program = drawn
        else:
            self._program.load(drawn)
