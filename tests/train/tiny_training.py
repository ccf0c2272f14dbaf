"""A training small enough to run a hundred times: 8-pixel images, one convolution, batch norm and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisystudent.config import TrainConfig
from noisystudent.records import Batch
from noisystudent.runtime import StopFlag, generator, torch_seed
from noisystudent.train.loop import fit

CLASSES = 3
LABELED = 4
POOL = 5


class TinyNet(nn.Module):
    """Batch norm, a convolution, and dropout that `draw` fixes beforehand."""

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


def flip_some(batch: Batch, step: int) -> Tensor:
    flipped = torch.as_tensor(generator(0, "flip", step).random(len(batch.images)) < 0.5)
    return torch.where(flipped[:, None, None, None], batch.images.flip(3), batch.images)


@dataclass
class TinyNoise:
    """The two halves of a step's noise, as functions of (batch, step)."""

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


@dataclass
class Training:
    """The arguments of `fit`, with something to change for each test."""

    folder: Path
    config: TrainConfig
    total_steps: int = 24
    stop: StopFlag = field(default_factory=StopFlag)
    changes: dict[str, Any] = field(default_factory=dict)
    model: TinyNet = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = TinyNet()

    def run(self) -> nn.Module:
        arguments: dict[str, Any] = {
            "batches": make_batches,
            "steps_per_epoch": 6.0,
            "num_classes": CLASSES,
            "hard_pool": False,
            "device": torch.device("cpu"),
            "dtype": torch.float32,
        }
        arguments |= self.changes
        halves = (arguments.pop("augment", flip_some), arguments.pop("draw_noise", self.model.draw))
        arguments.setdefault("noise", TinyNoise(*halves))
        return fit(
            self.model,
            config=self.config,
            total_steps=self.total_steps,
            folder=self.folder,
            stop=self.stop,
            **arguments,
        )
