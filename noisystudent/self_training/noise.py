"""Input noise and model noise of a training, drawn separately for labelled and pool images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from noisystudent.augment import ops, plan
from noisystudent.augment.policies import Policy
from noisystudent.augment.program import Program, compile_plan
from noisystudent.config import LearnerConfig
from noisystudent.models.classifier import Classifier
from noisystudent.records import Batch


class TrainingNoise:
    """Draws and applies the noise of each step. It depends only on the seed, the step and the kind of device.

    Labelled and pool rows have different random streams, so the noise of a labelled image does not depend on
    the pool. This implements `train.step.Noise`.

    Args:
        model: network whose dropout and stochastic depth are drawn.
        learner: kinds and strength of the noise, and which rows of a batch get it.
        policy: distribution of the input noise.
        seed: seed of the training.
        resolution: side of the images in pixels.
    """

    def __init__(
        self, model: Classifier, learner: LearnerConfig, policy: Policy, seed: int, resolution: int
    ) -> None:
        self._model, self._learner, self._policy = model, learner, policy
        self._seed, self._side = seed, resolution
        self._program: Program | None = (
            None  # GPU only. Its tensors keep their memory: a CUDA graph reads them.
        )

    def batches(self, batches: Iterator[Batch], start: int) -> Iterator[Batch]:
        """Yield the batches of the steps from `start` on, with input noise.

        On a CPU the noise is applied to the images. On a GPU each batch gets the program that will apply it,
        and its images are unchanged.
        """
        for first in batches:
            if first.images.is_cuda:
                program = compile_plan(self._draw_plan(start, first), first.images.device, grouped=False)
                yield replace(first, noise=program)
                start += 1
                continue
            # Noise is some hundred calls of torch, which take longer than the pixels of one small batch. So
            # small batches are joined up to BLOCK pixel values.
            group = [first, *islice(batches, max(0, ops.BLOCK // first.images.numel() - 1))]
            drawn = plan.join([self._draw_plan(start + n, batch) for n, batch in enumerate(group)])
            noised = ops.apply(torch.cat([batch.images for batch in group]), drawn)
            parts = noised.split([len(batch.images) for batch in group])
            yield from (replace(batch, images=images) for batch, images in zip(group, parts, strict=True))
            start += len(group)

    def draw(self, batch: Batch, step: int) -> None:
        """Draw the model noise of a step, and on a GPU load its input noise; see `train.step.Noise`."""
        if isinstance(batch.noise, Program):
            if self._program is None:
                self._program = batch.noise
            else:
                self._program.load(batch.noise)  # copied into the same memory
        labeled = len(batch.labels)
        # (B,) True for rows that get model noise. Labelled rows come first (`joint_batches`).
        active = torch.empty(len(batch.images), dtype=torch.bool, device=batch.images.device)
        active[:labeled] = self._learner.model.noise_labeled
        active[labeled:] = self._learner.model.noise_pool
        self._model.noise.draw(self._seed, step, active, split=labeled)

    def apply(self, images: Tensor) -> Tensor:
        """Apply the loaded input noise: (B, 3, S, S) uint8 -> the same shape. On a CPU: no change."""
        return images if self._program is None else ops.run(images, self._program)

    def _draw_plan(self, step: int, batch: Batch) -> plan.Plan:
        config = self._learner.augment
        # (random stream, True if noised, rows). Table 6 switches the noise off for the pool alone.
        parts = (
            ("labeled", config.labeled, len(batch.labels)),
            ("pool", config.pool, len(batch.pool_targets)),
        )
        return plan.join(
            [
                plan.draw(self._policy, self._seed, stream, step, rows, resolution=self._side)
                if noised
                else plan.identity(self._policy, rows, self._side)
                for stream, noised, rows in parts
            ]
        )
