"""LoRA: terms of a low rank are trained, and the ordinary network is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from option_trainer import EFFICIENT, VIT, Killed, Trainer, Weights, same
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader

from noisystudent.config import ModelConfig
from noisystudent.console import Progress
from noisystudent.errors import InputError, RunError
from noisystudent.inference.load import load_predictor
from noisystudent.models import Classifier, build_model, save_weights
from noisystudent.self_training.trainer import train
from noisystudent.self_training.training import _finished_model, _first_model


@pytest.fixture
def trained(images: Path, finished: Path, tmp_path: Path) -> Trainer:
    return Trainer(images, finished, tmp_path)


@pytest.mark.parametrize("model", [EFFICIENT, VIT, {"name": "test_convnext", "stochastic_depth": 0.2}])
def test_lora_trains_terms_of_its_rank_and_writes_the_ordinary_network(
    trained: Trainer, model: dict[str, Any]
) -> None:
    given = model | {"lora": 2}
    before = trained.first("plain", model)
    assert same(before, _plain(trained, given)) == set(before), "at step 0 the terms are 0"
    after = trained("run", given, lr=1.0)
    changed = set(before) - same(before, after)
    net: Any = build_model(ModelConfig(name=model["name"]), 3, 32).net
    head = {name for name in before if name.startswith(net.pretrained_cfg["classifier"])}
    assert head < changed
    for name in changed - head:
        difference = (after[name] - before[name]).flatten(1)
        assert name.endswith(".weight") and torch.linalg.matrix_rank(difference, atol=1e-5) <= 2


def _plain(trained: Trainer, model: dict[str, Any]) -> Weights:
    first = _first_model(trained.training("plain", model), Progress())
    first.merge_lora()
    return dict(first.net.state_dict())


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext", "resnet8_16"])
def test_merged_is_unmerged(name: str, tmp_path: Path) -> None:
    model = build_model(ModelConfig(name=name), 3, 64)
    model.add_lora(3, seed=1)
    draws = torch.Generator().manual_seed(0)
    for key, parameter in model.named_parameters():
        if key.endswith(".up"):
            nn.init.normal_(parameter, std=0.1, generator=draws)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=draws)
    with torch.no_grad():
        unmerged = model.eval()(images)
        model.merge_lora()
        torch.testing.assert_close(model(images), unmerged, rtol=1e-5, atol=1e-5)
        save_weights(model, tmp_path / "merged.safetensors", list("abc"))
        loaded = load_predictor(tmp_path / "merged.safetensors").models[0]
        assert isinstance(loaded, Classifier)
        torch.testing.assert_close(loaded(images), unmerged, rtol=1e-5, atol=1e-5)


def test_the_finished_model_of_a_training_with_lora_is_its_average(trained: Trainer) -> None:
    given = VIT | {"lora": 2}
    weights = trained("run", given)
    loaded = _finished_model(trained.training("run", given))
    assert same(dict(loaded.net.state_dict()), weights) == set(weights)


@pytest.mark.parametrize(
    ("rank", "message"),
    [(0, "model.lora is 0; it must be at least 1"), (500, "model.lora is 500; no trained layer")],
)
def test_a_rank_that_trains_nothing_is_refused(trained: Trainer, rank: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trained.first("run", VIT | {"lora": rank})


def test_snapshots_hold_what_is_trained_and_refuse_other_frozen_weights(trained: Trainer) -> None:
    given = VIT | {"lora": 2}
    often = {"checkpoint_steps": 3, "log_steps": 1, "eval_steps": 100}
    with pytest.raises(Killed):
        trained("run", given, kill_at=5, **often)
    (snapshot,) = (trained.root / "run").rglob("step-*")
    held = FileSystemReader(snapshot).read_metadata().state_dict_metadata
    weights = {name for name in held if name.startswith(("model.", "ema."))}
    assert weights and all(".0.up" in name or ".0.down" in name or ".head." in name for name in weights)
    training = dataclasses.replace(trained.training("run", given, **often), seed=4)
    with pytest.raises(RunError, match="frozen weights have changed"):
        train(training, None, Progress(), lambda _: None)
