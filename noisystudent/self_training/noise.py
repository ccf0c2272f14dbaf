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
from noisystudent.distributed import group
from noisystudent.errors import first_line
from noisystudent.models.classifier import Classifier
from noisystudent.records import Batch

PLANS = 32
"""Number of steps whose plans are uploaded to a GPU at once: 3 MB at a batch of 512."""


def batches_at_once(values: int) -> int:
    """Return the number of batches of so many pixel values that get their input noise together on a CPU.

    Noise is some hundred calls of torch, which take longer than the pixels of one small batch. So small
    batches are joined up to BLOCK pixel values.
    """
    return max(1, ops.BLOCK // values)


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
        views_from: first step with weakly augmented views of the pool images, for an `EmaTeacher`. None: no
            step has them.
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
        views_from: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._learner, self._policy = model, learner, policy
        self._seed, self._side, self._progress = seed, resolution, progress or Progress()
        # Crop 'inception' is done when images are decoded, so both views of an image have the same crop.
        self._weak = replace(policy, randaugment=None, cutout=0)
        self._views_from = views_from
        # Made by the first `draw`. They keep their memory, because a CUDA graph reads them.
        self._rows = (0, 0)  # labelled and pool images of a batch
        self._step: Tensor | None = None  # () int64, the step
        self._active: Tensor | None = None  # (B,) bool, rows that get model noise
        self._plans: Program | None = None  # GPU only: plans of PLANS steps, one after the other
        self._weak_plans: Program | None = None  # GPU only: of the views, too
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
            group = [first, *islice(batches, batches_at_once(first.images.numel()) - 1)]
            drawn = plan.join([self._draw_plan(start + n, batch) for n, batch in enumerate(group)])
            noised = ops.apply(torch.cat([batch.images for batch in group]), drawn)
            parts = noised.split([len(batch.images) for batch in group])
            views = self._views(group, start)
            yield from (
                replace(batch, images=images, pool_views=view)
                for batch, images, view in zip(group, parts, views, strict=True)
            )
            start += len(group)

    def _views(self, group: list[Batch], start: int) -> list[Tensor | None]:
        """Weakly augmented views of the pool images of batches on a CPU; None for steps without them."""
        steps = range(start, start + len(group))
        views: list[Tensor | None] = [None] * len(group)
        with_views = [
            number
            for number, step in enumerate(steps)
            if self._views_from is not None and step >= self._views_from and len(group[number].pool_targets)
        ]
        if with_views:
            images = [group[number].images[len(group[number].labels) :] for number in with_views]
            drawn = [self._draw_weak(steps[number], group[number]) for number in with_views]
            moved = ops.apply(torch.cat(images), plan.join(drawn)).split([len(part) for part in images])
            for number, part in zip(with_views, moved, strict=True):
                views[number] = part
        return views

    def draw(self, batch: Batch, step: int) -> None:
        """Set the step, and on a GPU upload the plans of a block; see `train.step.Noise`."""
        labeled = len(batch.labels)
        rows = (labeled, len(batch.pool_targets))
        if self._step is None or self._active is None or rows != self._rows:
            self._rows, self._plans, self._weak_plans, self._block = rows, None, None, -1
            self._step = torch.empty((), dtype=torch.int64, device=batch.images.device)
            # All batches of a phase have the same shape, and labelled rows come first (`joint_batches`).
            self._active = torch.empty(len(batch.images), dtype=torch.bool, device=batch.images.device)
            self._active[:labeled] = self._learner.model.noise_labeled
            self._active[labeled:] = self._learner.model.noise_pool
        self._step.fill_(step)
        first = tuple(group().rows(count).start for count in batch.counts)
        self._model.noise.on(self._seed, self._active, split=labeled, first=(first[0], first[1]))
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

    def restrict(self, rows: Tensor) -> None:
        """Draw the model noise of the next forward pass for some rows; see `train.step.Noise`."""
        self._model.noise.restrict(rows)

    def views(self, batch: Batch) -> Tensor:
        """Weakly augmented views of the pool images; see `train.step.Noise`."""
        if batch.pool_views is not None:  # on a CPU, `batches` has made them
            return batch.pool_views
        assert self._step is not None and self._weak_plans is not None, "call `draw` first"
        images = batch.images[len(batch.labels) :]
        return ops.run(images, self._weak_plans.part(self._step % PLANS, len(images)))

    def _upload(self, batch: Batch) -> None:
        """Draw the plans of the block and copy them to the GPU at once."""
        steps = range(PLANS * self._block, PLANS * (self._block + 1))
        drawn = plan.join([self._draw_plan(step, batch) for step in steps])
        plans = compile_plan(drawn, batch.images.device, grouped=False)
        weak = None
        if self._views_from is not None and len(batch.pool_targets):
            joined = plan.join([self._draw_weak(step, batch) for step in steps])
            weak = compile_plan(joined, batch.images.device, grouped=False)
        if self._plans is None:
            self._plans, self._weak_plans = plans, weak
            self._choose_kernels(batch.images)
            return
        self._plans.load(plans)
        if self._weak_plans is not None and weak is not None:
            self._weak_plans.load(weak)

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
            ("labeled", config.labeled, batch.counts[0]),
            ("pool", config.pool, batch.counts[1]),
        )
        drawn = [
            plan.draw(self._policy, self._seed, stream, step, rows, resolution=self._side)
            if noised
            else plan.identity(self._policy, rows, self._side)
            for stream, noised, rows in parts
        ]
        return plan.join([self._own(part) for part in drawn])

    def _draw_weak(self, step: int, batch: Batch) -> plan.Plan:
        rows = batch.counts[1]
        return self._own(plan.draw(self._weak, self._seed, "pool/weak", step, rows, resolution=self._side))

    def _own(self, drawn: plan.Plan) -> plan.Plan:
        """The rows of this process in a plan for the rows of all."""
        own = group().rows(len(drawn))
        return drawn.rows(own.start, own.stop)
