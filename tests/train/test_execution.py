from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_training import Training, make_batches
from torch import Tensor

from noisystudent.config import ModelConfig, TrainConfig
from noisystudent.errors import RunError
from noisystudent.models.registry import build_model
from noisystudent.records import Batch
from noisystudent.runtime import StopFlag
from noisystudent.train import execution
from noisystudent.train.loop import fit

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


def train(form: str, folder: Path, device: torch.device, dtype: torch.dtype) -> list[float]:
    """Losses of 50 steps of a residual network with all its noise."""
    model = build_model(ModelConfig(name="resnet8_16", dropout=0.2, stochastic_depth=0.2), 3, 16, seed=0)

    def batches(start: int, stop: int) -> Iterator[Batch]:
        for b in make_batches(start, stop):
            images = b.images.repeat_interleave(2, 2).repeat_interleave(2, 3)
            yield Batch(images.to(device), b.labels.to(device), b.pool_targets.to(device))

    fit(
        model,
        batches=batches,
        noise=FlipAndNoise(model.to(device), device),
        config=TrainConfig(execution=form, log_steps=1, lr=1.0, batch_size=4),  # type: ignore[arg-type]
        total_steps=STEPS,
        steps_per_epoch=6.0,
        num_classes=3,
        hard_pool=False,
        folder=folder,
        device=device,
        dtype=dtype,
        stop=StopFlag(),
    )
    return losses(folder)


@pytest.mark.slow  # a minute of compilation
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_compiled_steps_have_the_losses_of_eager_ones(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    eager, compiled = (train(form, tmp_path / form, cpu, torch.float32) for form in ("eager", "compiled"))
    assert len(eager) == STEPS
    torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 5e-2)])
def test_the_three_forms_agree_on_a_gpu(tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    gpu = torch.device("cuda")
    found = [train(form, tmp_path / form, gpu, dtype) for form in ("eager", "compiled", "captured")]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=tolerance)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=tolerance)


def test_a_graph_needs_a_gpu_and_says_so(training: Make) -> None:
    with pytest.raises(RunError, match=r"execution is captured, which needs a CUDA device; choose compiled"):
        training(execution="captured").run()


def broken(*_: object, **__: object) -> Callable[..., Tensor]:
    def fails(*_: object) -> Tensor:
        raise RuntimeError("no working C++ compiler found\nlong story")

    return fails


def test_a_form_that_was_asked_for_and_fails_is_one_line(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        RunError, match=r"^train.execution is compiled, .*\(no working .* found\); choose eager$"
    ):
        training(execution="compiled").run()


def test_where_a_faster_form_fails_the_next_trains_the_same_model_and_the_reason_is_told(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = training("straight")
    straight.run()
    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(execution.Executor, "_asked", lambda self: ["compiled", "eager"])
    told: list[str] = []
    fallen = training("fallen", changes={"notify": told.append})
    fallen.run()
    assert told == ["steps cannot be compiled here (no working C++ compiler found); trying eager"]
    assert losses(fallen.folder) == losses(straight.folder)
