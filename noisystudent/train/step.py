"""One training step: augment, forward, joint loss, backward, optimiser, moving average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from noisystudent.config import TrainConfig
from noisystudent.errors import InputError
from noisystudent.records import Batch
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.losses import joint_loss

Augment = Callable[[Batch, int], Tensor]
DrawNoise = Callable[[Batch, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStep:
    """Advances a `TrainState` by one step; all that is random comes from `augment` and `draw_noise`.

    Attributes:
        augment: (batch, step) -> images (B, 3, S, S) uint8 with their input noise.
        draw_noise: (batch, step) -> None; fixes the model noise of the next forward pass.
        lr: step -> learning rate.
        config: loss, clipping and memory format.
        num_classes: K.
        hard_pool: see `joint_loss`.
        dtype: of the forward pass; float32 switches autocast off.
    """

    augment: Augment
    draw_noise: DrawNoise
    lr: Callable[[int], float]
    config: TrainConfig
    num_classes: int
    hard_pool: bool
    dtype: torch.dtype

    def __call__(self, state: TrainState, batch: Batch) -> Tensor:
        """Take the step `state.step`, add its measurements to `state.window`; no host synchronisation.

        Returns:
            () float32 on the device: the loss, before the update.
        """
        step, model, optimizer = state.step, state.model, state.optimizer
        for group in optimizer.param_groups:
            group["lr"] = self.lr(step)
        self.draw_noise(batch, step)
        logits = self._forward(model, self.augment(batch, step))  # (B, K)
        loss = joint_loss(
            logits,
            batch.labels,
            batch.pool_targets,
            smoothing=self.config.label_smoothing,
            hard_pool=self.hard_pool,
            normalization=self.config.normalization,
        )
        loss.backward()
        if self.config.clip_norm is not None:
            clip_grad_norm_(model.parameters(), self.config.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.ema.update(model, step)
        state.window += torch.stack([loss.detach(), _top1(logits, batch.labels)])
        state.step += 1
        return loss.detach()

    def _forward(self, model: nn.Module, images: Tensor) -> Tensor:
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits: Tensor = model(images)
        if logits.shape != (len(images), self.num_classes):
            raise InputError(
                f"the model answers {tuple(logits.shape)} to {len(images)} images;"
                f" it must have {self.num_classes} outputs, one a class"
            )
        return logits


def _top1(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the labelled rows whose most likely class is the given label: () float32."""
    return (logits[: len(labels)].detach().argmax(dim=1) == labels).float().mean()
