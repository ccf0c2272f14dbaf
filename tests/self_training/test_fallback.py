"""Published weights that may not be available: the rate is that of the weights a training starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from option_trainer import Killed, Trainer, same

from noisystudent.config import FinetuneConfig, ModelConfig
from noisystudent.console import Progress
from noisystudent.models import build_model, registry, save_weights
from noisystudent.models.pretrained import Unavailable
from noisystudent.self_training.finetune import finetuning

ANY_WEIGHTS: dict[str, Any] = {"name": "test_resnet", "pretrained": True, "pretrained_fallback": True}
OPTIONS: dict[str, Any] = {"lr": None, "steps": 5, "checkpoint_steps": 2, "log_steps": 1, "eval_steps": 100}


@pytest.fixture
def trained(images: Path, finished: Path, tmp_path: Path) -> Trainer:
    return Trainer(images, finished, tmp_path)


@pytest.fixture
def network(trained: Trainer, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """`network(True)`: from now on the published weights are available; `network(False)`: they are not."""
    file, state = trained.root / "published.safetensors", {"up": False}
    save_weights(build_model(ModelConfig(name="test_resnet"), 1000, 32, seed=9), file)

    def source(name: str, progress: Progress | None) -> dict[str, Any]:
        if not state["up"]:
            raise Unavailable("there is no network")
        return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}

    monkeypatch.setattr(registry, "pretrained_source", source)
    return lambda up: state.update(up=up)


def test_random_weights_in_place_of_published_ones_have_the_rate_from_scratch(
    trained: Trainer, network: Callable[[bool], None]
) -> None:
    network(False)
    scratch = trained("scratch", ANY_WEIGHTS | {"pretrained": False}, **OPTIONS)
    trained.lines.lines.clear()
    fallen = trained("fallen", ANY_WEIGHTS, **OPTIONS)
    assert same(scratch, fallen) == set(scratch)
    assert [line for line in trained.lines.lines if "rate" in line] == ["learning rate 0.1 (scratch, sgd)"]
    trainings = [trained.training(name, ANY_WEIGHTS, **OPTIONS) for name in ("fallen", "new")]
    assert not any("learning rate" in one.describe(None) for one in trainings), "it is not known before"
    ends = [finetuning(one, FinetuneConfig(steps=4)).config.lr for one in trainings]
    assert ends == [0.1, 0.01], "the fine-tuning goes on with the rate of the training"


def test_a_training_that_has_fallen_back_goes_on_so(
    trained: Trainer, network: Callable[[bool], None]
) -> None:
    network(False)
    straight = trained("straight", ANY_WEIGHTS, **OPTIONS)
    with pytest.raises(Killed):
        trained("cut", ANY_WEIGHTS, kill_at=4, **OPTIONS)
    network(True)
    resumed = trained("cut", ANY_WEIGHTS, **OPTIONS)
    assert same(straight, resumed) == set(straight)


def test_a_training_from_published_weights_goes_on_so(
    trained: Trainer, network: Callable[[bool], None]
) -> None:
    network(False)
    with pytest.raises(Killed):  # before the first snapshot, so it begins again
        trained("cut", ANY_WEIGHTS, kill_at=1, **OPTIONS)
    network(True)
    straight = trained("straight", ANY_WEIGHTS, **OPTIONS)
    with pytest.raises(Killed):
        trained("cut", ANY_WEIGHTS, kill_at=4, **OPTIONS)
    network(False)
    trained.lines.lines.clear()
    resumed = trained("cut", ANY_WEIGHTS, **OPTIONS)
    assert same(straight, resumed) == set(straight)
    assert "learning rate 0.01 (batch norm, sgd)" in trained.lines.lines
