"""Gradient checkpointing: blocks are computed twice, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from option_trainer import EFFICIENT, SMALL, VIT, Trainer, same

from noisystudent.console import Progress
from noisystudent.errors import InputError
from noisystudent.self_training.training import _first_model


@pytest.fixture
def trained(images: Path, finished: Path, tmp_path: Path) -> Trainer:
    return Trainer(images, finished, tmp_path)


@pytest.mark.parametrize(("model", "frozen"), [(EFFICIENT, None), (EFFICIENT, 1), (VIT, None), (VIT, 1)])
def test_computed_twice_is_computed_once_to_the_bit(
    trained: Trainer, model: dict[str, Any], frozen: int | None
) -> None:
    stored = trained("stored", model, frozen_blocks=frozen, ema_decay=0.5)
    again = trained("again", model | {"grad_checkpointing": True}, frozen_blocks=frozen, ema_decay=0.5)
    assert same(stored, again) == set(stored)


def test_blocks_are_computed_twice_in_training_alone(trained: Trainer) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model = _first_model(trained.training("run", VIT | {"grad_checkpointing": True}), Progress())
    model.net.get_submodule("blocks.2").register_forward_pre_hook(count)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    model.train()(images).sum().backward()
    assert calls == 2
    model.eval()(images).sum().backward()
    assert calls == 3


def test_a_network_that_cannot_do_it_is_refused(trained: Trainer) -> None:
    with pytest.raises(InputError, match="grad_checkpointing is true, which resnet8_16 does not support"):
        trained.first("run", SMALL | {"grad_checkpointing": True})
