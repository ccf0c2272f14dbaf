"""Input noise and model noise of a training, drawn separately for labelled and pool images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice

import torch
from torch import Tensor

from noisystudent.augment import ops, plan
from noisystudent.augment.policies import Policy
from noisystudent.augment.program import Program, compile_plan
from noisystudent.config import LearnerConfig
from noisystudent.console import Progress
from noisystudent.errors import first_line
from noisystudent.models.classifier import Classifier
from noisystudent.records import Batch

PLANS = 32
"""Number of steps whose plans are uploaded to a GPU at once: 3 MB at a batch of 512."""


class TrainingNoise:
    """Draws and applies the noise of each step. It depends only on the seed and the step.

    Labelled and pool rows have different random streams, so the noise of a labelled image does not depend on
    the pool. This implements `train.step.Noise`.

    Args:
        model: network whose dropout and stochastic depth are drawn.
        learner: kinds and strength of the noise, and which rows of a batch get it.
        policy: distribution of the input noise.
        seed: seed of the training.
        resolution: side of the images in pixels.
        progress: prints why Triton's kernels are not used, if they fail on this machine.
    """

    def __init__(
        self,
        model: Classifier,
        learner: LearnerConfig,
        policy: Policy,
        seed: int,
        resolution: int,
        *,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._learner, self._policy = model, learner, policy
        self._seed, self._side, self._progress = seed, resolution, progress or Progress()
        # Made by the first `draw`. They keep their memory, because a CUDA graph reads them.
        self._step: Tensor | None = None  # () int64, the step
        self._active: Tensor | None = None  # (B,) bool, rows that get model noise
        self._plans: Program | None = None  # GPU only: plans of PLANS steps, one after the other
        self._block = -1  # step // PLANS of these plans
        self._run: Callable[[Tensor, Program], Tensor] = ops.run

    def batches(self, batches: Iterator[Batch], start: int) -> Iterator[Batch]:
        """Yield the batches of the steps from `start` on.

        On a CPU their images get the input noise here. On a GPU they are unchanged: `apply` adds the noise.
        """
        for first in batches:
            if first.images.is_cuda:
                yield first
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
        """Set the step, and on a GPU upload the plans of a block; see `train.step.Noise`."""
        labeled = len(batch.labels)
        if self._step is None or self._active is None:
            self._step = torch.empty((), dtype=torch.int64, device=batch.images.device)
            # All batches of a training have the same shape, and labelled rows come first (`joint_batches`).
            self._active = torch.empty(len(batch.images), dtype=torch.bool, device=batch.images.device)
            self._active[:labeled] = self._learner.model.noise_labeled
            self._active[labeled:] = self._learner.model.noise_pool
        self._step.fill_(step)
        self._model.noise.on(self._seed, self._active, split=labeled)
        if batch.images.is_cuda and step // PLANS != self._block:
            self._block = step // PLANS
            self._upload(batch)

    def apply(self, images: Tensor) -> Tensor:
        """Compute the masks of the step, and on a GPU add the input noise: (B, 3, S, S) uint8."""
        assert self._step is not None, "call `draw` first"
        self._model.noise.fill(self._step)
        if self._plans is None:
            return images
        return self._run(images, self._plans.part(self._step % PLANS, len(images)))

    def _upload(self, batch: Batch) -> None:
        """Draw the plans of the block and copy them to the GPU at once."""
        steps = range(PLANS * self._block, PLANS * (self._block + 1))
        drawn = plan.join([self._draw_plan(step, batch) for step in steps])
        plans = compile_plan(drawn, batch.images.device, grouped=False)
        if self._plans is None:
            self._plans = plans
            self._choose_kernels(batch.images)
        else:
            self._plans.load(plans)

    def _choose_kernels(self, images: Tensor) -> None:
        """Use Triton's kernels for RandAugment if they work on this machine; the pixels are the same."""
        if self._policy.randaugment is None or find_spec("triton") is None:
            return
        assert self._plans is not None
        try:
            from noisystudent.augment import triton_ops

            triton_ops.run(images, self._plans.part(images.new_zeros((), dtype=torch.int64), len(images)))
        except Exception as error:  # of the compiler, the driver or the system; none of them is needed
            reason = first_line(error)
            self._progress.say(f"Input noise: Triton fails on this machine ({reason}); using PyTorch.")
        else:
            self._run = triton_ops.run

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
