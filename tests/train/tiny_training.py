"""A training that is fast enough to run 100 times: 8-pixel images, one convolution, batch norm and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisystudent.config import TrainConfig
from noisystudent.console import Progress
from noisystudent.records import Batch
from noisystudent.run.rundir import ModelDir
from noisystudent.runtime import generator, torch_seed
from noisystudent.train.loop import fit
from noisystudent.train.optim import lr_at
from noisystudent.train.step import TrainStep

CLASSES = 3
LABELED = 4
POOL = 5
STEPS_PER_EPOCH = 6.0


class TinyNet(nn.Module):
    """Batch norm, a convolution, and dropout with a mask that `draw` sets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, CLASSES)
        self.mask: Tensor | None = None

    def draw(self, batch: Batch, step: int) -> None:
        kept = generator(0, "dropout", step).random((len(batch.images), 6)) > 0.2
        self.mask = torch.as_tensor(kept)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.conv(images.float() / 255))).mean((2, 3))
        if self.training and self.mask is not None:
            features = features * self.mask.to(features.device)
        logits: Tensor = self.head(features)
        return logits.float()


def make_batches(start: int, stop: int) -> Iterator[Batch]:
    for step in range(start, stop):
        draws = torch.Generator().manual_seed(torch_seed(0, "batch", step))
        yield Batch(
            torch.randint(0, 256, (LABELED + POOL, 3, 8, 8), dtype=torch.uint8, generator=draws),
            torch.randint(0, CLASSES, (LABELED,), generator=draws),
            torch.rand((POOL, CLASSES), generator=draws).softmax(1),
        )


class Killed(BaseException):
    """Replaces SIGKILL: no code in the package may catch it."""


def kill_at(step: int) -> Callable[[int, int], Iterator[Batch]]:
    def batches(start: int, stop: int) -> Iterator[Batch]:
        for current, batch in zip(range(start, stop), make_batches(start, stop), strict=True):
            if current == step:
                raise Killed
            yield batch

    return batches


def broken_average(name: str, value: float) -> Callable[[nn.Module], dict[str, float]]:
    """An evaluation that puts the value into the first element of a tensor of the moving average."""

    def evaluate(averaged: nn.Module) -> dict[str, float]:
        tensor = averaged.state_dict()[name]
        tensor[(0,) * tensor.ndim] = value
        return {}

    return evaluate


def flip_some(batch: Batch, step: int) -> Tensor:
    flipped = torch.as_tensor(generator(0, "flip", step).random(len(batch.images)) < 0.5)
    return torch.where(flipped[:, None, None, None], batch.images.flip(3), batch.images)


@dataclass
class TinyNoise:
    """Input noise and model noise of a step, as functions of (batch, step)."""

    augment: Callable[[Batch, int], Tensor]
    draw_noise: Callable[[Batch, int], None]
    drawn: tuple[Batch, int] | None = None

    def draw(self, batch: Batch, step: int) -> None:
        self.draw_noise(batch, step)
        self.drawn = batch, step

    def apply(self, images: Tensor) -> Tensor:
        assert self.drawn is not None
        batch, step = self.drawn
        return self.augment(replace(batch, images=images), step)

    def restrict(self, rows: Tensor) -> None:
        pass  # without model noise

    def views(self, batch: Batch) -> Tensor:
        return batch.images[len(batch.labels) :]  # clean


@dataclass
class Training:
    """Arguments of `fit` that a test can change."""

    folder: Path
    config: TrainConfig
    total_steps: int = 24
    progress: Progress = field(default_factory=Progress)
    changes: dict[str, Any] = field(default_factory=dict)
    model: TinyNet = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = TinyNet()

    def run(self) -> nn.Module:
        changes = dict(self.changes)
        self.model.to(changes.pop("device", torch.device("cpu")))
        batches, step = changes.pop("batches", make_batches), self._step(changes)
        return fit(
            self.model,
            batches,
            step,
            total_steps=self.total_steps,
            steps_per_epoch=STEPS_PER_EPOCH,
            folder=ModelDir(self.folder),
            progress=self.progress,
            **changes,
        )

    def _step(self, changes: dict[str, Any]) -> TrainStep:
        """Take the changes of this step out of `changes`, and apply them."""
        schedule = partial(
            lr_at, config=self.config, steps_per_epoch=STEPS_PER_EPOCH, total_steps=self.total_steps
        )
        return TrainStep(
            noise=TinyNoise(changes.pop("augment", flip_some), changes.pop("draw_noise", self.model.draw)),
            lr=changes.pop("lr", schedule),
            config=self.config,
            num_classes=changes.pop("num_classes", CLASSES),
            dtype=changes.pop("dtype", torch.float32),
            hard_pool=changes.pop("hard_pool", False),
            teacher=changes.pop("teacher", None),
        )
