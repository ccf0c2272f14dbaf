"""Trainings of a tenth of a second on the tiny images, with other networks and other settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from noisystudent.console import Progress
from noisystudent.self_training.trainer import train
from noisystudent.self_training.training import Training, _first_model

Weights = dict[str, Tensor]

VIT: dict[str, Any] = {"name": "test_vit", "stochastic_depth": 0.5}
EFFICIENT: dict[str, Any] = {"name": "test_efficientnet", "stochastic_depth": 0.5}
SMALL: dict[str, Any] = {"name": "resnet8_16"}


class Killed(BaseException):
    """Replaces SIGKILL."""


class Trainer:
    """Trains on the tiny images, with differences in the network and in the training."""

    def __init__(self, images: Path, finished: Path, root: Path) -> None:
        self.asked, self.dataset = tiny.opened(images, finished)
        self.root, self.lines = root, tiny.Remembered()

    def training(self, name: str, model: dict[str, Any], **options: Any) -> Training:
        given = tiny.training(self.asked, self.dataset, self.root / name)
        learner = dataclasses.replace(
            given.learner,
            model=dataclasses.replace(given.learner.model, **model),
            train=dataclasses.replace(given.learner.train, **{"lr": 0.05, "steps": 6} | options),
        )
        return dataclasses.replace(given, learner=learner, resolution=32)

    def __call__(self, name: str, model: dict[str, Any], kill_at: int = 0, **options: Any) -> Weights:
        def on_log(line: dict[str, float]) -> None:
            if line["step"] == kill_at:
                raise Killed

        training = self.training(name, model, **options)
        pool = None if training.read_pool is None else training.read_pool()
        train(training, pool, self.lines, on_log)
        return load_file(training.folder.weights)

    def first(self, name: str, model: dict[str, Any], **options: Any) -> Weights:
        """Weights at step 0."""
        return dict(_first_model(self.training(name, model, **options), Progress()).net.state_dict())


def same(one: Weights, other: Weights) -> set[str]:
    """Names of the tensors that are equal to the bit."""
    assert one.keys() == other.keys()
    return {name for name in one if torch.equal(one[name], other[name])}
