"""What a stage leaves in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from torch import nn
from torch.optim import Optimizer

from noisystudent.self_training import train_stage
from noisystudent.train import loop, optim


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Python collects cycles at any time; here only the program does."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
def test_no_model_and_no_optimiser_outlives_its_training(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []
    check = train_stage._check_model

    def build_optimizer(model: nn.Module, *arguments: Any) -> Optimizer:
        optimizer = optim.build_optimizer(model, *arguments)
        made.extend((weakref.ref(model), weakref.ref(optimizer)))
        return optimizer

    def after_training(*arguments: Any) -> None:
        assert made
        assert [ref for ref in made if ref() is not None] == []
        check(*arguments)

    monkeypatch.setattr(loop, "build_optimizer", build_optimizer)
    monkeypatch.setattr(train_stage, "_check_model", after_training)
    tiny.run(tiny.config(images), tmp_path / "run")
    assert len(made) == 2 * 3  # teacher, student, control
