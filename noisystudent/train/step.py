"""One training step: noise, forward pass, joint loss, backward pass, optimiser, moving average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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

Forward = Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(model, images, labels, pool_targets) -> (loss, top-1); see `TrainStep.forward`."""


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
    """

    noise: Noise
    lr: Callable[[int], float]
    config: TrainConfig
    num_classes: int
    dtype: torch.dtype
    hard_pool: bool = False
    pool_temperature: float = 1.0
    _apply: Callable[[Tensor], Tensor] | None = None
    _forward: Forward | None = None

    def compiled(self, on_gpu: bool) -> TrainStep:
        """Return the same step with compiled input noise and forward pass."""
        # Not dynamic: all batches have the same shapes, and fixed shapes give faster kernels.
        forward = torch.compile(self.forward, dynamic=False)
        # On a CPU the images of a batch have their noise already, and compiling the masks saves nothing.
        apply = torch.compile(self.noise.apply, dynamic=False) if on_gpu else None
        return replace(self, _apply=apply, _forward=forward)

    def prepare(self, state: TrainState, batch: Batch) -> None:
        """Set the learning rate, the decay of the moving average and the noise of step `state.step`."""
        # A rate beyond float32 is infinite, so the check of the weights stops the training.
        lr = torch.tensor(self.lr(state.step), dtype=torch.float64).float().item()
        for group in state.optimizer.param_groups:
            group["lr"].fill_(lr)
        state.decay.fill_(decay_at(state.step, self.config.ema_decay))
        self.noise.draw(batch, state.step)

    def advance(self, state: TrainState, batch: Batch) -> None:
        """Run the prepared step, and add its loss and top-1 to `state.window`."""
        images = (self._apply or self.noise.apply)(batch.images)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        forward = self._forward or self.forward
        loss, top1 = forward(state.model, images, batch.labels, batch.pool_targets)
        loss.backward()
        if self.config.clip_norm is not None:
            clip_grad_norm_(state.model.parameters(), self.config.clip_norm)
        state.optimizer.step()
        # None instead of 0, so that a capture allocates the gradients in the memory of its CUDA graph.
        state.optimizer.zero_grad(set_to_none=True)
        state.ema.update(state.decay)
        # Summed on the device: reading the loss in every step would make the host wait.
        state.window.add_(torch.stack([loss.detach(), top1]))

    def forward(
        self, model: nn.Module, images: Tensor, labels: Tensor, pool_targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute loss and top-1 before the update, () float32 each.

        Top-1 is the fraction of labelled rows that are predicted correctly. Without labelled rows it is the
        fraction of pool rows whose prediction is the most likely class of the pseudo-label.

        Args:
            model: images -> logits (B, K).
            images: (B, 3, S, S) uint8 with their noise, labelled rows first.
            labels: (L,) int64.
            pool_targets: (B-L, K) probabilities.

        Raises:
            InputError: the model does not have K outputs.
        """
        # Autocast for the forward pass only; the loss is computed in float32.
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
        )
        # Labelled rows come first in a batch.
        targets = labels if len(labels) else pool_targets.argmax(dim=1)
        correct = logits[: len(targets)].detach().argmax(dim=1) == targets
        return loss, correct.float().mean()
