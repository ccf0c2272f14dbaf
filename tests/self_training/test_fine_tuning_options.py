"""Rates by layer, frozen blocks, LoRA and gradient checkpointing in trainings: what each leaves equal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader

from noisystudent.config import ModelConfig, TrainConfig
from noisystudent.config.rates import LEARNING_RATES
from noisystudent.console import Progress
from noisystudent.errors import InputError, RunError
from noisystudent.inference.load import load_predictor
from noisystudent.models import Classifier, build_model, save_weights
from noisystudent.self_training.models import with_rate
from noisystudent.self_training.training import Training, _finished_model, _first_model, train

Weights = dict[str, Tensor]

VIT = {"name": "test_vit", "stochastic_depth": 0.5}
EFFICIENT = {"name": "test_efficientnet", "stochastic_depth": 0.5}
SMALL = {"name": "resnet8_16"}
NEARLY_1 = 1 - 1e-12  # other groups, but the same rates in float32


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


@pytest.fixture
def trained(images: Path, finished: Path, tmp_path: Path) -> Trainer:
    return Trainer(images, finished, tmp_path)


def same(one: Weights, other: Weights) -> set[str]:
    """Names of the tensors that are equal to the bit."""
    assert one.keys() == other.keys()
    return {name for name in one if torch.equal(one[name], other[name])}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop_tf"])
def test_equal_rates_in_many_groups_are_one_rate(trained: Trainer, optimizer: str) -> None:
    one = trained("one", SMALL, optimizer=optimizer, clip_norm=1.0)
    many = trained("many", SMALL, optimizer=optimizer, clip_norm=1.0, layer_decay=NEARLY_1)
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
    options = {"optimizer": "sgd", "weight_decay": 0.01}
    model = VIT | {"stochastic_depth": 0.0}  # frozen blocks drop no branches
    blocks = 6
    frozen = trained("frozen", model, frozen_blocks=blocks, **options)
    still = trained("still", model, layer_decay=0.0, **options)
    assert same(frozen, still) == set(frozen)
    assert set(frozen) - same(frozen, trained.first("frozen", model)) == {"head.weight", "head.bias"}


def test_a_step_of_sgd_is_proportional_to_the_factor_of_the_layer(trained: Trainer) -> None:
    options = {"steps": 1, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "ema_decay": 0.0}
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


@pytest.mark.parametrize("model", [SMALL | {"stochastic_depth": 0.5}, EFFICIENT, VIT])
@pytest.mark.parametrize("frozen", [None, 1])
def test_computed_twice_is_computed_once_to_the_bit(
    trained: Trainer, model: dict[str, Any], frozen: int | None
) -> None:
    if model["name"] == "resnet8_16":
        with pytest.raises(InputError, match="grad_checkpointing is true, which resnet8_16 does not support"):
            trained.first("run", model | {"grad_checkpointing": True})
        return
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


OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (SMALL, {"layer_decay": 0.7, "head_lr_scale": 5.0, "optimizer": "adamw", "lr": 1e-2}),
    (SMALL, {"frozen_blocks": 2, "optimizer": "rmsprop_tf"}),
    (EFFICIENT | {"lora": 2, "grad_checkpointing": True}, {"layer_decay": 0.7}),
    (VIT | {"lora": 2}, {"frozen_blocks": 1, "optimizer": "adamw", "layer_decay": 0.9, "lr": 1e-2}),
]


@pytest.mark.parametrize(("model", "options"), OPTIONS)
def test_killed_and_resumed_is_uninterrupted(
    trained: Trainer, model: dict[str, Any], options: dict[str, Any]
) -> None:
    often = {"steps": 9, "checkpoint_steps": 3, "log_steps": 1, "eval_steps": 100} | options
    straight = trained("straight", model, **often)
    with pytest.raises(Killed):
        trained("cut", model, kill_at=8, **often)
    assert any((trained.root / "cut").rglob("step-*")), "it goes on from a snapshot"
    resumed = trained("cut", model, **often)
    assert same(straight, resumed) == set(straight)


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
    with pytest.raises(RunError, match="frozen weights are others now"):
        train(training, None, Progress(), lambda _: None)


def test_frozen_weights_take_no_memory_in_the_optimizer_and_keep_their_average(trained: Trainer) -> None:
    weights = trained("run", VIT, frozen_blocks=3, optimizer="adamw", lr=1e-3)
    loaded = _finished_model(trained.training("run", VIT))
    assert same(dict(loaded.net.state_dict()), weights) == set(weights)


def test_rates_that_no_recipe_gives_are_by_start_and_family(trained: Trainer) -> None:
    cases = {
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
    assert LEARNING_RATES["other norm"]["adamw"] <= 5e-5 < 5e-4
    assert TrainConfig().lr is None and LEARNING_RATES["scratch"]["sgd"] == 0.1


def test_the_factors_of_the_layers_are_printed(trained: Trainer) -> None:
    trained("run", VIT, layer_decay=0.5, head_lr_scale=10.0)
    (line,) = (line for line in trained.lines.lines if "factors" in line)
    assert "from the stem on: 0.00781, 0.0156, …, 0.25, 0.5; classification layer 10" in line


def test_the_control_and_the_folds_have_the_options_of_the_run(
    images: Path, finished: Path, tmp_path: Path
) -> None:
    file = finished / "iteration-0" / "teacher" / "model.safetensors"
    model = {"pretrained": str(file), "lora": 1}
    fields = [("teacher.model", model), ("teacher.train", {"layer_decay": 0.8, "lr": 0.5}), ("folds", 2)]
    out = tmp_path / "run"
    lines = tiny.run(tiny.config(images, *fields), out)
    written = [path for path in out.rglob("model.safetensors") if "superseded" not in path.parts]
    assert len(written) == 5  # teacher, two folds, student, control
    before = load_file(file)
    for path in written:
        weights = load_file(path)
        difference = (weights["body.block1.conv1.weight"] - before["body.block1.conv1.weight"]).flatten(1)
        assert 0 < torch.linalg.matrix_rank(difference, rtol=1e-3) <= 1, path
    assert sum("factors of the learning rate" in line for line in lines) == len(written)


def test_weights_that_would_be_kept_although_they_are_random_are_refused(
    images: Path, tmp_path: Path
) -> None:
    for field, value in (("model.lora", 2), ("train.frozen_blocks", 1)):
        with pytest.raises(InputError, match=rf"teacher.{field} is {value}, .* would be random"):
            tiny.run(tiny.config(images, (f"teacher.{field}", value)), tmp_path / "run")
        fields = [("students", 1), (f"student.{field}", value)]
        with pytest.raises(InputError, match=rf"students.0.{field} is {value}"):
            tiny.run(tiny.config(images, *fields), tmp_path / "run")
        handed = [*fields, ("student.init", "teacher"), ("control", "none")]
        tiny.run(tiny.config(images, *handed), tmp_path / field)
    assert not (tmp_path / "run").exists()
