"""A training step on a GPU: it waits for nothing, mixes no devices, and gives the same numbers in every form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from device_training import Setting, require_equal, trained
from pretend_gpu import Gpu

OPTIMIZERS = {
    "sgd": {"optimizer": "sgd"},
    "sgd without momentum": {"optimizer": "sgd", "momentum": 0.0},
    "sgd, clipped": {"optimizer": "sgd", "clip_norm": 1.0},
    "rmsprop": {"optimizer": "rmsprop_tf"},
    "rmsprop, clipped": {"optimizer": "rmsprop_tf", "clip_norm": 1.0},
    "adamw": {"optimizer": "adamw"},
}


@pytest.mark.parametrize("train", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_captured_steps_give_the_numbers_of_eager_ones(gpu: Gpu, train: dict[str, object]) -> None:
    eager = Setting(train=train)
    require_equal(trained(gpu, eager), trained(gpu, replace(eager, form="captured")))
