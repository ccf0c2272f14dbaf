"""A compiled teacher says what it says uncompiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from noisystudent.config import LearnerConfig, ModelConfig, TrainConfig
from noisystudent.models.registry import build_model
from noisystudent.self_training import labeler, learner
from noisystudent.self_training.learner import Lesson

BATCH = 8
MANY = labeler.WORTH_COMPILING


def teacher(execution: str = "auto") -> tuple[torch.nn.Module, Lesson]:
    config = LearnerConfig(
        model=ModelConfig(name="resnet8_16"),
        train=TrainConfig(steps=1, batch_size=8, execution=execution),  # type: ignore[arg-type]
    )
    model = build_model(config.model, 3, 16, seed=0).to(memory_format=torch.channels_last).eval()
    return model, cast(Lesson, SimpleNamespace(learner=config, device=torch.device("cpu"), folder=Path()))


def pictures(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(1))


def test_whole_batches_are_compiled_and_agree() -> None:
    model, lesson = teacher()
    lines: list[str] = []
    predict = labeler.labeler(model, lesson, MANY, BATCH, lines.append)  # type: ignore[arg-type]
    eager = learner.predictor(model, lesson)
    for count in (BATCH, BATCH, 3):
        images = pictures(count)
        assert torch.allclose(predict(images), eager(images), atol=1e-5)
    assert torch.equal(predict(pictures(3)), eager(pictures(3))), "the last batch runs as it is"
    assert lines == []


@pytest.mark.parametrize(("images", "execution"), [(MANY - 1, "auto"), (MANY, "eager")])
def test_a_small_pool_or_eager_is_not_compiled(
    images: int, execution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    model, lesson = teacher(execution)
    labeler.labeler(model, lesson, images, BATCH, print)(pictures(BATCH))  # type: ignore[arg-type]


def test_where_nothing_compiles_it_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_model: object, **_: object) -> Callable[[Tensor], Tensor]:
        def fail(_images: Tensor) -> Tensor:
            raise RuntimeError("no compiler\nsecond line")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    model, lesson = teacher()
    lines: list[str] = []
    predict = labeler.labeler(model, lesson, MANY, BATCH, lines.append)  # type: ignore[arg-type]
    for _ in range(2):
        assert torch.equal(predict(pictures(BATCH)), learner.predictor(model, lesson)(pictures(BATCH)))
    assert lines == ["the labelling network cannot be compiled here (no compiler); it runs as it is"]
