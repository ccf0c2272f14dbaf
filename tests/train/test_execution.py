from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Remembered
from tiny_training import Training
from torch import Tensor

from noisystudent.config import ModelConfig, TrainConfig
from noisystudent.console import Progress
from noisystudent.errors import RunError
from noisystudent.models.registry import build_model
from noisystudent.records import Batch
from noisystudent.train import execution
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.ema import Ema
from noisystudent.train.execution import Executor
from noisystudent.train.optim import build_optimizer
from noisystudent.train.step import TrainStep

Make = Callable[..., Training]
STEPS = 50


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


class FlipAndNoise:
    """Dropout and stochastic depth of a real model, and every image mirrored in odd steps."""

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self._model = model
        self._mirrored = torch.zeros((), dtype=torch.bool, device=device)

    def draw(self, batch: Batch, step: int) -> None:
        self._mirrored.fill_(step % 2 == 1)
        active = torch.ones(len(batch.images), dtype=torch.bool, device=batch.images.device)
        self._model.noise.draw(0, step, active, split=len(batch.labels))  # type: ignore[operator,union-attr]

    def apply(self, images: Tensor) -> Tensor:
        return torch.where(self._mirrored, images.flip(3), images)

    def restrict(self, rows: Tensor) -> None:
        self._model.noise.restrict(rows)  # type: ignore[operator,union-attr]

    def views(self, batch: Batch) -> Tensor:
        return batch.images[len(batch.labels) :].flip(3)


def start(form: str, device: torch.device, dtype: torch.dtype) -> tuple[TrainState, Executor]:
    """Network of the demo with all its noise, at step 0."""
    config = TrainConfig(execution=form, lr=0.4, batch_size=32)  # type: ignore[arg-type]
    model = build_model(ModelConfig(name="resnet8_16", dropout=0.2, stochastic_depth=0.2), 3, 16, seed=0)
    model.to(device).to(memory_format=torch.channels_last).train()
    numbers: dict[str, Any] = {
        "window": torch.zeros(2, device=device),
        "decay": torch.zeros((), device=device),
    }
    state = TrainState(model, Ema(model), build_optimizer(model, config), **numbers)
    step = TrainStep(
        noise=FlipAndNoise(model, device),
        lr=lambda step: 0.05,
        config=config,
        num_classes=3,
        dtype=dtype,
    )
    return state, Executor(step, state, Progress(), STEPS)


def batch_of(step: int, device: torch.device) -> Batch:
    draws = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (256, 3, 16, 16), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, 3, (32,), generator=draws)
    targets = torch.rand((224, 3), generator=draws).softmax(1)
    return Batch(images.to(device), labels.to(device), targets.to(device))


def compare(forms: list[str], device: torch.device, dtype: torch.dtype, tolerance: float) -> None:
    """Compare 50 losses; every form starts each step with the weights of the first form.

    Training magnifies rounding: without the same weights, the float32 losses of the two forms on a CPU differ
    by up to 2.5e-5 within 50 steps.
    """
    begun = [start(form, device, dtype) for form in forms]
    for step in range(STEPS):
        weights = copy.deepcopy(begun[0][0].model.state_dict())
        for state, execute in begun:
            with torch.no_grad():
                for own, first in zip(state.model.state_dict().values(), weights.values(), strict=True):
                    own.copy_(first)
            state.window.zero_()
            execute(batch_of(step, device))
        losses = [float(state.window[0]) for state, _ in begun]
        torch.testing.assert_close(losses, [losses[0]] * len(losses), rtol=0, atol=tolerance)


@pytest.mark.slow  # compilation takes a minute
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_compiled_steps_have_the_losses_of_eager_ones() -> None:
    compare(["eager", "compiled"], torch.device("cpu"), torch.float32, 1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 2e-2)])
def test_the_forms_agree_on_a_gpu(dtype: torch.dtype, tolerance: float) -> None:
    compare(["eager", "captured-eager", "compiled", "captured"], torch.device("cuda"), dtype, tolerance)


def test_a_graph_without_a_gpu_is_an_error(training: Make) -> None:
    with pytest.raises(RunError, match=r"execution is captured, which needs a CUDA device; choose compiled"):
        training(execution="captured").run()


def broken(*_: object, **__: object) -> Callable[..., Tensor]:
    def fails(*_: object, **_more: object) -> Tensor:
        raise RuntimeError("no working C++ compiler found\nlong story")

    return fails


def test_a_configured_form_that_fails_is_one_line(training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        RunError, match=r"^train.execution is compiled, .*\(no working .* found\); choose eager$"
    ):
        training(execution="compiled").run()


def test_where_a_faster_form_fails_the_next_trains_the_same_model_and_the_reason_is_printed(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = training("straight")
    straight.run()
    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(execution, "forms_to_try", lambda *_: ["compiled", "eager"])
    progress = Remembered()
    second = training("second", progress=progress)
    second.run()
    assert progress.lines == [
        "Execution of steps: compiled fails on this machine (no working C++ compiler found); using eager."
    ]
    assert losses(second.folder) == losses(straight.folder)


def test_the_reason_of_a_failed_compilation_is_the_error_of_the_compiler(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch says "backend='…' raised:", and the reason in a later line."""

    def backend(*_: object) -> Callable[..., Tensor]:
        raise RuntimeError("no working C++ compiler found")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(RunError, match=r"\(no working C\+\+ compiler found\); choose eager$"):
        training(execution="compiled").run()
