"""What is random in a lesson, drawn for the labelled rows of a batch and its pool rows apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

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
        self._ahead: dict[int, Tensor] = {}  # by step, images that have their noise
        self._noised: Tensor | None = None  # those of the step last drawn

    def ahead(self, batches: Iterator[Batch], start: int) -> Iterator[Batch]:
        """The batches of steps `start`, …; on a CPU several small ones get their input noise together.

        Noise is some hundred calls, which take longer than the pixels of a small batch.
        """
        for first in batches:
            together = 1 if first.images.is_cuda else max(1, ops.BLOCK // first.images.numel())
            group = [first, *islice(batches, together - 1)]
            if len(group) > 1:
                drawn = plan.join([self._drawn(start + n, batch) for n, batch in enumerate(group)])
                noised = ops.apply(torch.cat([batch.images for batch in group]), drawn)
                sizes = [len(batch.images) for batch in group]
                self._ahead = dict(enumerate(noised.split(sizes), start))
            yield from group
            start += len(group)

    def draw(self, batch: Batch, step: int) -> None:
        """Fix the noise of a step; see `train.step.Noise`."""
        self._noised = self._ahead.pop(step, None)
        if self._noised is None:
            self._plan = self._drawn(step, batch)
        if batch.images.is_cuda:
            self._load(batch.images.device)
        labeled = len(batch.labels)
        active = torch.empty(len(batch.images), dtype=torch.bool, device=batch.images.device)
        active[:labeled] = self._learner.model.noise_labeled
        active[labeled:] = self._learner.model.noise_pool
        self._model.noise.draw(self._seed, step, active, split=labeled)

    def apply(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> the same with the input noise last drawn."""
        if self._noised is not None:
            return self._noised
        return ops.apply(images, self._plan) if self._program is None else ops.run(images, self._program)

    def _drawn(self, step: int, batch: Batch) -> plan.Plan:
        config = self._learner.augment
        parts = (
            ("labeled", config.labeled, len(batch.labels)),
            ("pool", config.pool, len(batch.pool_targets)),
        )
        return plan.join(
            [
                plan.draw(self._policy, self._seed, stream, step, rows, self._side)
                if on
                else plan.identity(self._policy, rows, self._side)
                for stream, on, rows in parts
            ]
        )

    def _load(self, device: torch.device) -> None:
        drawn = compile_plan(self._plan, device, grouped=False)
        if self._program is None:
            self._program = drawn
        else:
            self._program.load(drawn)
