"""One training step: noise, forward pass, joint loss, backward pass, optimiser, moving average."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from noisystudent.config import TrainConfig
from noisystudent.distributed import Group, group
from noisystudent.errors import InputError, root_cause
from noisystudent.records import Batch
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.ema import decay_at
from noisystudent.train.ema_teacher import Averages, EmaTeacher
from noisystudent.train.losses import fairness_loss, joint_loss
from noisystudent.train.optim import set_lr
from noisystudent.train.parallel import batchnorm_buffers, gradients, total

Forward = Callable[..., tuple[Tensor, Tensor]]
"""(model, images, labels, pool_targets, expected, …) -> (loss, top-1); see `TrainStep.forward`."""
Label = Callable[[nn.Module, Tensor, Averages | None, Tensor, int], tuple[Tensor, Averages | None]]
"""(moving average, views, averages, decay, count) -> targets, new averages; see `TrainStep.label`."""


class BatchTooLarge(RuntimeError):
    """The gradients of a batch do not fit into the memory. No weight has changed."""


class Noise(Protocol):
    """Everything that is random in a step: drawn on the host, applied on the device."""

    def draw(self, batch: Batch, step: int) -> None:
        """Set the step, on the host, before `apply`.

        On a GPU the tensors that `apply` reads must keep their memory, because a captured CUDA graph reads
        them there.
        """

    def apply(self, images: Tensor) -> Tensor:
        """Compute the masks of the model noise, and return the images (B, 3, S, S) uint8 with their noise.

        On a GPU this must only launch kernels, so that a CUDA graph can capture it.
        """

    def restrict(self, rows: Tensor) -> None:
        """Draw the model noise of the next forward pass for some rows of the batch alone: (b,) int64."""

    def views(self, batch: Batch) -> Tensor:
        """Return weakly augmented views of the pool images, (B-L, 3, S, S) uint8, for an `EmaTeacher`.

        As for `apply`, `draw` comes first, and on a GPU this must only launch kernels.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStep:
    """Advances a `TrainState` by one step. Everything random comes from `noise`.

    `prepare` runs on the host: it writes the numbers that change from step to step into tensors. `advance`
    runs on the device: it does not synchronise with the host and reads no Python number that changes, so a
    CUDA graph can capture it.

    Attributes:
        noise: noise of images and model.
        lr: step -> learning rate.
        config: loss, gradient clipping, moving average and memory format.
        num_classes: K.
        dtype: data type of the forward pass; float32 switches autocast off.
        hard_pool, pool_temperature: see `joint_loss`.
        teacher: how the moving average labels the pool images. None: their stored labels are used.
        everyone: the processes that share each batch.
    """

    noise: Noise
    lr: Callable[[int], float]
    config: TrainConfig
    num_classes: int
    dtype: torch.dtype
    hard_pool: bool = False
    pool_temperature: float = 1.0
    teacher: EmaTeacher | None = None
    everyone: Group = field(default_factory=group)
    _apply: Callable[[Tensor], Tensor] | None = None
    _forward: Forward | None = None
    _label: Label | None = None

    def compiled(self, on_gpu: bool) -> TrainStep:
        """Return the same step with compiled input noise and forward pass."""
        # Not dynamic: all batches have the same shapes, and fixed shapes give faster kernels.
        forward = torch.compile(self.forward, dynamic=False)
        # On a CPU the images of a batch have their noise already, and compiling the masks saves nothing.
        apply = torch.compile(self.noise.apply, dynamic=False) if on_gpu else None
        label = torch.compile(self.label, dynamic=False)
        return replace(self, _apply=apply, _forward=forward, _label=label)

    def kind(self, step: int, batch: Batch) -> tuple[int, int, bool]:
        """Everything that differs between steps which need a compilation or a CUDA graph of their own.

        Returns:
            Labelled rows, pool rows, and True if the moving average labels the pool rows in this step.
        """
        rows = len(batch.pool_targets)
        labels = self.teacher is not None and rows > 0 and step >= self.teacher.first_step
        return len(batch.labels), rows, labels

    def prepare(self, state: TrainState, batch: Batch) -> None:
        """Set the learning rate, the decay of the moving average and the noise of step `state.step`."""
        set_lr(state.optimizer, self.lr(state.step))
        state.decay.fill_(decay_at(state.step, self.config.ema_decay))
        self.noise.draw(batch, state.step)

    def advance(self, state: TrainState, batch: Batch) -> None:
        """Run the prepared step, and add its loss and top-1 to `state.window`."""
        images = self._in_layout((self._apply or self.noise.apply)(batch.images))
        targets, averages, expected = batch.pool_targets, None, None
        if self.teacher is not None and self.kind(state.step, batch)[-1]:
            views = self._in_layout(self.noise.views(batch))
            label = self._label or self.label
            targets, averages = label(state.ema.module, views, state.averages, state.decay, batch.counts[1])
            if averages is not None and self.teacher.fairness:
                expected = averages.expected()
        try:
            measured = self._backward(state, replace(batch, images=images, pool_targets=targets), expected)
        except RuntimeError as error:
            if isinstance(root_cause(error), torch.OutOfMemoryError):
                raise BatchTooLarge(str(root_cause(error))) from error
            raise
        if self.everyone.size > 1:
            self.everyone.sum(*([] if state.whole else gradients(state.model)), measured)
        # Summed on the device: reading the loss in every step would make the host wait.
        state.window.add_(measured)
        if self.config.clip_norm is not None:
            clip_grad_norm_(state.model.parameters(), self.config.clip_norm)
        state.optimizer.step()
        # None instead of 0, so that a capture allocates the gradients in the memory of its CUDA graph.
        state.optimizer.zero_grad(set_to_none=True)
        if not self.config.sync_batchnorm and self.everyone.size > 1:
            self.everyone.copy(*batchnorm_buffers(state.model))
        state.ema.update(state.decay)
        # At the end, because a batch that does not fit into the memory is labelled again.
        if averages is not None and state.averages is not None:
            state.averages.become(averages)

    def _backward(self, state: TrainState, batch: Batch, expected: Tensor | None) -> Tensor:
        """Add the gradients of all parts of a batch, and return (2,) its loss and top-1."""
        measured = torch.zeros_like(state.window)
        for part in self._parts(batch):
            loss, top1 = (self._forward or self.forward)(
                state.model,
                part.images,
                part.labels,
                part.pool_targets,
                expected=expected,
                blend=part.blend,
                counts=part.counts,
            )
            # FSDP2 takes the mean of the gradients of all processes.
            (loss if state.whole is None else loss * self.everyone.size).backward()
            measured.add_(torch.stack([loss.detach(), top1]))
        return measured

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """Yield the parts of a batch that are computed one after the other; the noise is that of the part."""
        number = self.config.accumulate
        if number == 1:
            yield batch
            return
        labeled, pool = torch.arange(len(batch.images), device=batch.images.device).split(
            [len(batch.labels), len(batch.pool_targets)]
        )
        for of_labeled, of_pool in zip(labeled.tensor_split(number), pool.tensor_split(number), strict=True):
            rows = torch.cat([of_labeled, of_pool])
            self.noise.restrict(rows)
            yield replace(
                batch,
                images=self._in_layout(batch.images[rows]),
                labels=batch.labels[of_labeled],
                pool_targets=batch.pool_targets[of_pool - len(labeled)],
                whole=batch.counts,
            )

    def _in_layout(self, images: Tensor) -> Tensor:
        """The images in the memory format of the model."""
        if not self.config.channels_last:
            return images
        return images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def label(
        self, average: nn.Module, views: Tensor, averages: Averages | None, decay: Tensor, count: int
    ) -> tuple[Tensor, Averages | None]:
        """Label weakly augmented views (N, 3, S, S) uint8 by the moving average.

        Args:
            count: number of views of all processes.

        Returns:
            Targets (N, K) float32, and the averages with the predictions of these views.
        """
        assert self.teacher is not None
        with torch.autocast(views.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = average(views)
        if averages is not None:
            averages = averages.updated(logits.float().softmax(dim=1), decay, self.everyone, count)
        return self.teacher.targets(logits, averages), averages

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        pool_targets: Tensor,
        *,
        expected: Tensor | None = None,
        blend: tuple[Tensor, Tensor] | None = None,
        counts: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute loss and top-1 before the update, () float32 each.

        Top-1 is the fraction of labelled rows that are predicted correctly; without them that of pool rows.

        Args:
            model: images -> logits (B, K).
            images, labels: of the batch, with their noise.
            pool_targets: (B-L, K) probabilities; rows of zeros have no label.
            expected: (K,) for `fairness_loss`. None: without it.
            blend, counts: of the batch. Losses and top-1 of its parts sum to those of the batch.

        Raises:
            InputError: the model does not have K outputs.
        """
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = model(images)
        if logits.shape != (len(images), self.num_classes):
            raise InputError(
                f"the model returns {tuple(logits.shape)} logits for {len(images)} images;"
                f" it must have {self.num_classes} outputs, one for each class"
            )
        loss = joint_loss(
            logits,
            labels,
            pool_targets,
            smoothing=self.config.label_smoothing,
            hard_pool=self.hard_pool,
            normalization=self.config.normalization,
            pool_temperature=self.pool_temperature,
            blend=blend,
            counts=counts,
        )
        if expected is not None and self.teacher is not None:
            fairness = fairness_loss(logits[len(labels) :], pool_targets, expected, total)
            loss = loss + self.teacher.fairness / self.everyone.size * fairness
        in_labeled, in_pool = counts or (len(labels), len(pool_targets))
        targets = labels if in_labeled else _hard(pool_targets)
        correct = logits[: len(targets)].detach().argmax(dim=1) == targets
        return loss, correct.float().sum() / (in_labeled or in_pool)


def _hard(targets: Tensor) -> Tensor:
    """The most likely class of each target (N, K); -1, which is none, where there is no label."""
    return torch.where(targets.any(dim=1), targets.argmax(dim=1), -1)
