"""A compiled teacher says what it says uncompiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from noisystudent.config import ModelConfig
from noisystudent.models.registry import asked, build_model
from noisystudent.pseudo_label.labeler import WORTH_COMPILING, Predict, labeler

BATCH = 8
ANSWERING = partial(asked, device=torch.device("cpu"), dtype=torch.float32)


def teacher() -> torch.nn.Module:
    model = build_model(ModelConfig(name="resnet8_16"), 3, 16, seed=0)
    return model.to(memory_format=torch.channels_last).eval()


def pictures(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(1))


def labels_many(model: torch.nn.Module, lines: list[str], images: int = WORTH_COMPILING) -> Predict:
    return labeler(model, ANSWERING, images=images, batch_size=BATCH, notify=lines.append)


def test_whole_batches_are_compiled_and_agree() -> None:
    model, lines = teacher(), list[str]()
    predict, eager = labels_many(model, lines), ANSWERING(model)
    for count in (BATCH, BATCH, 3):
        images = pictures(count)
        assert torch.allclose(predict(images), eager(images), atol=1e-5)
    assert torch.equal(predict(pictures(3)), eager(pictures(3))), "the last batch runs as it is"
    assert lines == []


def test_a_small_pool_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    labels_many(teacher(), [], WORTH_COMPILING - 1)(pictures(BATCH))


def test_where_nothing_compiles_it_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_model: object, **_: object) -> Callable[[Tensor], Tensor]:
        def fail(_images: Tensor) -> Tensor:
            raise RuntimeError("no compiler\nsecond line")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    model, lines = teacher(), list[str]()
    predict = labels_many(model, lines)
    for _ in range(2):
        assert torch.equal(predict(pictures(BATCH)), ANSWERING(model)(pictures(BATCH)))
    assert lines == ["the labelling network cannot be compiled here (no compiler); it runs as it is"]
