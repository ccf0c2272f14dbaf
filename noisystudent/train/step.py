"""One training step: noise, forward, joint loss, backward, optimiser, moving average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from noisystudent.config import TrainConfig
from noisystudent.errors import InputError
from noisystudent.records import Batch
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.ema import decay_at
from noisystudent.train.losses import joint_loss

Pass = Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Noise(Protocol):
    """All that is random in a step: drawn on the host, then applied on the device."""

    def draw(self, batch: Batch, step: int) -> None:
        """Fix the input noise and the model noise of a step; what `apply` reads keeps its memory on a GPU."""

    def apply(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> the same with the input noise last drawn; on a GPU, kernels alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStep:
    """Advances a `TrainState` by one step; all that is random comes from `noise`.

    `prepare` is the host's part: numbers that change from step to step go into tensors. `advance` is the
    device's: it waits for nothing and reads no Python number that changes, so it can be captured as a graph.

    Attributes:
        noise: of images and model.
        lr: step -> learning rate.
        config: loss, clipping, average and memory format.
        num_classes: K.
        hard_pool, pool_temperature: see `joint_loss`.
        dtype: of the forward pass; float32 switches autocast off.
    """

    noise: Noise
    lr: Callable[[int], float]
    config: TrainConfig
    num_classes: int
    hard_pool: bool
    dtype: torch.dtype
    pool_temperature: float = 1.0

    def prepare(self, state: TrainState, batch: Batch) -> None:
        """Learning rate, decay of the average and noise of step `state.step`."""
        for group in state.optimizer.param_groups:
            group["lr"].fill_(self.lr(state.step))
        state.decay.fill_(decay_at(state.step, self.config.ema_decay))
        self.noise.draw(batch, state.step)

    def advance(
        self, state: TrainState, batch: Batch, apply: Callable[[Tensor], Tensor], forward: Pass
    ) -> None:
        """Take the step, and add its loss and top-1 to `state.window`.

        Args:
            state: changed in place.
            batch: of the step that was prepared.
            apply: `noise.apply`, or its compiled form.
            forward: `forward`, or its compiled form.
        """
        images = apply(batch.images)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        loss, top1 = forward(state.model, images, batch.labels, batch.pool_targets)
        loss.backward()
        if self.config.clip_norm is not None:
            clip_grad_norm_(state.model.parameters(), self.config.clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.ema.update(state.decay)
        state.window.add_(torch.stack([loss.detach(), top1]))

    def forward(
        self, model: nn.Module, images: Tensor, labels: Tensor, pool_targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss before the update, and the share of right answers among the labelled rows: () float32 each.

        Without labelled rows it is the share that agrees with the pseudo-labels.
        """
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = model(images)
        if logits.shape != (len(images), self.num_classes):
            raise InputError(
                f"the model answers {tuple(logits.shape)} to {len(images)} images;"
                f" it must have {self.num_classes} outputs, one a class"
            )
        loss = joint_loss(
            logits,
            labels,
            pool_targets,
            smoothing=self.config.label_smoothing,
            hard_pool=self.hard_pool,
            normalization=self.config.normalization,
            pool_temperature=self.pool_temperature,
        )
        known = labels if len(labels) else pool_targets.argmax(dim=1)
        right = logits[: len(known)].detach().argmax(dim=1) == known
        return loss, right.float().mean()
