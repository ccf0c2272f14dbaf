"""Options of fine-tuning through a whole run: killed and resumed, in folds and control, and compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from option_trainer import EFFICIENT, SMALL, VIT, Killed, Trainer, same
from safetensors.torch import load_file


@pytest.fixture
def trained(images: Path, finished: Path, tmp_path: Path) -> Trainer:
    return Trainer(images, finished, tmp_path)


OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (SMALL, {"layer_decay": 0.7, "head_lr_scale": 5.0, "optimizer": "adamw", "lr": 1e-2}),
    (SMALL, {"frozen_blocks": 2, "optimizer": "rmsprop_tf"}),
    (EFFICIENT | {"lora": 2, "grad_checkpointing": True}, {"layer_decay": 0.7}),
    (
        VIT | {"lora": 2},
        {"frozen_blocks": 1, "optimizer": "adamw", "layer_decay": 0.9, "lr": 1e-2, "precision": "bf16"},
    ),
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


def test_the_control_and_the_folds_have_the_options_of_the_run(
    images: Path, finished: Path, tmp_path: Path
) -> None:
    file = finished / "iteration-0" / "teacher" / "model.safetensors"
    model = {"pretrained": str(file), "lora": 1}
    fields = [("teacher.model", model), ("teacher.train", {"layer_decay": 0.8, "lr": 0.5}), ("folds", 2)]
    fields += [("control", ["same_steps"])]  # a linear probe trains no block
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


@pytest.mark.slow
@pytest.mark.parametrize(("model", "options"), OPTIONS)
def test_compiled_is_eager(trained: Trainer, model: dict[str, Any], options: dict[str, Any]) -> None:
    options = options | {"precision": "fp32"}
    eager = trained("eager", model, **options)
    compiled = trained("compiled", model, **options, execution="compiled")
    assert any("Compilation took" in line for line in trained.lines.lines)
    for name in eager:
        torch.testing.assert_close(compiled[name], eager[name], rtol=1e-3, atol=1e-4)
