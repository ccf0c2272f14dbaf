"""Rates by layer and family, and frozen blocks: what each of them leaves equal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from option_trainer import EFFICIENT, SMALL, VIT, Trainer, same

from noisystudent.config import ModelConfig, TrainConfig
from noisystudent.config.rates import LEARNING_RATES
from noisystudent.errors import InputError
from noisystudent.models import build_model
from noisystudent.self_training.checks import check_config
from noisystudent.self_training.models import with_rate


@pytest.fixture
def trained(images: Path, finished: Path, tmp_path: Path) -> Trainer:
    return Trainer(images, finished, tmp_path)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop_tf"])
def test_equal_rates_in_many_groups_are_one_rate(trained: Trainer, optimizer: str) -> None:
    # Each layer has a group of its own, and the factors are 1 in float32.
    one = trained("one", SMALL, optimizer=optimizer, clip_norm=1.0)
    many = trained("many", SMALL, optimizer=optimizer, clip_norm=1.0, layer_decay=1 - 1e-12)
    assert same(one, many) == set(one)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop_tf"])
def test_rates_of_zero_leave_the_layers_before_the_last(trained: Trainer, optimizer: str) -> None:
    after = trained("run", SMALL, optimizer=optimizer, layer_decay=0.0)
    before = trained.first("run", SMALL)
    head = {"fc.weight", "fc.bias"}
    weights = {name for name, _ in build_model(ModelConfig(**SMALL), 3, 16).net.named_parameters()}
    assert weights - same(before, after) == head
    after = trained("head", SMALL, optimizer=optimizer, head_lr_scale=0.0)
    assert same(before, after) & weights == head


def test_without_batch_norm_frozen_layers_are_layers_with_a_rate_of_zero(trained: Trainer) -> None:
    options: dict[str, Any] = {"optimizer": "sgd", "weight_decay": 0.01}
    model = VIT | {"stochastic_depth": 0.0}  # frozen blocks drop no branches
    blocks = 6
    frozen = trained("frozen", model, frozen_blocks=blocks, **options)
    still = trained("still", model, layer_decay=0.0, **options)
    assert same(frozen, still) == set(frozen)
    assert set(frozen) - same(frozen, trained.first("frozen", model)) == {"head.weight", "head.bias"}


def test_a_step_of_sgd_is_proportional_to_the_factor_of_the_layer(trained: Trainer) -> None:
    options: dict[str, Any] = {
        "steps": 1,
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "ema_decay": 0.0,
    }
    options |= {"warmup_epochs": 0.0, "schedule": "constant"}
    before = trained.first("plain", VIT)
    plain = trained("plain", VIT, **options)
    decayed = trained("decayed", VIT, layer_decay=0.5, head_lr_scale=8.0, **options)
    model = build_model(ModelConfig(name="test_vit"), 3, 32)
    for depth, names in enumerate(reversed(model.layers(""))):
        for name in (name.removeprefix("net.") for name in names):
            factor = 8.0 if name.startswith("head.") else 0.5**depth
            step = factor * (plain[name] - before[name])
            torch.testing.assert_close(decayed[name] - before[name], step, rtol=1e-3, atol=2e-7)


@pytest.mark.parametrize("model", [SMALL | {"stochastic_depth": 0.5}, EFFICIENT, VIT])
def test_frozen_weights_and_statistics_do_not_change_and_all_others_do(
    trained: Trainer, model: dict[str, Any]
) -> None:
    before = trained.first("run", model)
    after = trained("run", model, frozen_blocks=2, ema_decay=0.5)
    net = build_model(ModelConfig(name=model["name"]), 3, 32)
    stem, one, two, *rest = net.layers("")
    frozen = {name.removeprefix("net.") for name in (*stem, *one, *two)}
    modules = {name.rpartition(".")[0] for name in frozen}
    frozen |= {name for name in before if name.rpartition(".")[0] in modules}
    assert frozen <= same(before, after)
    trainable = {name.removeprefix("net.") for layer in rest for name in layer}
    assert not trainable & same(before, after)


def test_rates_that_no_recipe_gives_are_by_start_and_family(trained: Trainer) -> None:
    cases: dict[str, dict[str, Any]] = {
        "scratch": {"name": "test_vit"},
        "batch norm": {"name": "test_efficientnet", "pretrained": True},
        "other norm": {"name": "test_convnext", "pretrained": True},
        "LoRA": {"name": "test_vit", "pretrained": True, "lora": 4},
    }
    assert set(cases) == set(LEARNING_RATES)
    for family, model in cases.items():
        for optimizer, rate in LEARNING_RATES[family].items():
            training = trained.training(family, model, lr=None, optimizer=optimizer)
            assert with_rate(training.learner, 32, from_weights="pretrained" in model)[1] == family
            assert training.config.lr == rate
            assert f"learning rate {rate:g} ({family}, {optimizer})" in training.describe(None)
    given = trained.training("given", cases["other norm"], lr=0.3)
    assert given.config.lr == 0.3 and "learning rate" not in given.describe(None)
    started = dataclasses.replace(trained.training("started", SMALL, lr=None), initial=given.folder)
    assert started.config.lr == LEARNING_RATES["batch norm"]["sgd"]
    assert LEARNING_RATES["other norm"]["adamw"] <= 1e-4 < 5e-4
    assert TrainConfig().lr is None and LEARNING_RATES["scratch"]["sgd"] == 0.1


def test_the_factors_of_the_layers_are_printed(trained: Trainer) -> None:
    trained("run", VIT, layer_decay=0.5, head_lr_scale=10.0)
    (line,) = (line for line in trained.lines.lines if "factors" in line)
    assert "from the stem on: 0.00781, 0.0156, …, 0.25, 0.5; classification layer 10" in line


@pytest.mark.parametrize(("field", "value"), [("model.lora", 2), ("train.frozen_blocks", 1)])
def test_weights_that_would_be_kept_although_they_are_random_are_refused(
    images: Path, field: str, value: int
) -> None:
    with pytest.raises(InputError, match=rf"teacher.{field} is {value}, .* would be random"):
        check_config(tiny.config(images, (f"teacher.{field}", value)), pool=True)
    student = (f"student.{field}", value)
    with pytest.raises(InputError, match=rf"students.0.{field} is {value}"):
        check_config(tiny.config(images, student), pool=True)
    published = [("teacher.model.pretrained", True), ("teacher.model.pretrained_fallback", True)]
    with pytest.raises(InputError, match="pretrained_fallback to false"):
        check_config(tiny.config(images, *published, (f"teacher.{field}", value)), pool=True)
    check_config(tiny.config(images, student, ("student.init", "teacher")), pool=True)
    check_config(tiny.config(images, published[0], (f"teacher.{field}", value)), pool=True)
    handed = [("pretrain", {"model": SMALL, "train": {"steps": 3}}), ("data.pool_tags", True)]
    for teachers in ([], [{}, {"train": {"steps": 3}}]):
        fields = [*handed, ("teachers", teachers), (f"teacher.{field}", value), ("students", 0)]
        check_config(tiny.config(images, *fields), pool=True)
