"""A Predictor averages models and transforms, and a compiled one agrees with an uncompiled one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import Remembered
from torch import Tensor, nn
from torch.nn import functional

from noisystudent.config import ModelConfig
from noisystudent.inference.forms import WORTH_COMPILING
from noisystudent.inference.predictor import Predictor
from noisystudent.models.registry import build_model

BATCH = 8


def predictor(*models: Callable[[Tensor], Tensor], **options: Any) -> Predictor:
    """Of functions too: a Predictor only calls its models."""
    return Predictor(models=models, classes=(), device=torch.device("cpu"), **options)  # type: ignore[arg-type]


def network() -> nn.Module:
    model = build_model(ModelConfig(name="resnet8_16"), 3, 16, seed=0)
    return model.to(memory_format=torch.channels_last).eval()


def linear(seed: int) -> Callable[[Tensor], Tensor]:
    weights = torch.randn(3 * 8 * 8, 4, generator=torch.Generator().manual_seed(seed)) / 500
    return lambda images: functional.interpolate(images.float(), (8, 8)).flatten(1) @ weights


def random_images(count: int, side: int = 16) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draws)


def probs(logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=1)


# --- averages ---


def test_one_model_and_no_transform_is_the_model() -> None:
    images, model = random_images(5), network()
    with torch.inference_mode():
        assert torch.equal(predictor(model)(images), model(images))
    assert predictor(model).differentiable is model


def test_only_one_network_without_transforms_is_differentiable() -> None:
    model = network()
    assert predictor(model, model).differentiable is None
    assert predictor(model, flip=True).differentiable is None
    assert predictor(model, scales=(1.0, 0.5)).differentiable is None
    assert predictor(linear(0)).differentiable is None


def test_the_average_is_over_models_and_mirror_images() -> None:
    images, models = random_images(5, 8), (linear(0), linear(1))
    expected = [probs(model(view)) for model in models for view in (images, images.flip(3))]
    averaged = predictor(*models, flip=True)
    assert torch.allclose(probs(averaged(images)), torch.stack(expected).mean(0), atol=1e-6)
    assert torch.allclose(averaged(images), averaged(images.flip(3)), atol=1e-5)


def test_equal_models_agree_with_themselves() -> None:
    images = random_images(5, 8)
    found = predictor(*[linear(0)] * 3)(images)
    assert torch.allclose(probs(found), probs(linear(0)(images)), atol=1e-6)


def test_scales_resize_the_images() -> None:
    sides: list[int] = []

    def model(images: Tensor) -> Tensor:
        sides.append(images.shape[-1])
        assert images.dtype == torch.uint8
        return linear(0)(images)

    flat = torch.full((2, 3, 16, 16), 77, dtype=torch.uint8)
    found = predictor(model, scales=(1.0, 0.75, 1.5))(flat)
    assert sides == [16, 12, 24]
    assert torch.allclose(probs(found), probs(linear(0)(flat)), atol=1e-6), "a flat image is flat at any size"


# --- forms ---


def prepared(model: nn.Module, progress: Remembered, images: int = WORTH_COMPILING) -> Predictor:
    return predictor(model, batch_size=BATCH).prepared(images, progress=progress)[0]


@pytest.mark.slow
def test_whole_batches_are_compiled_and_agree() -> None:
    model, progress = network(), Remembered()
    fast, eager = prepared(model, progress), predictor(model)
    for count in (BATCH, BATCH, 3):
        images = random_images(count)
        assert torch.allclose(fast(images), eager(images), atol=1e-5)
    assert torch.equal(fast(random_images(3)), eager(random_images(3))), "the last batch runs uncompiled"
    assert progress.lines == []


@pytest.mark.parametrize("options", [{}, {"eager": True}])
def test_a_small_pool_and_eager_models_are_not_compiled(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    images = WORTH_COMPILING if options else WORTH_COMPILING - 1
    ready, size = predictor(network(), **options).prepared(images, progress=Remembered())
    assert size == 256 and ready(random_images(BATCH)).shape == (BATCH, 3)


def test_where_nothing_compiles_it_runs_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_model: object, **_: object) -> Callable[[Tensor], Tensor]:
        def fail(_images: Tensor) -> Tensor:
            raise RuntimeError("no compiler\nsecond line")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    model, progress = network(), Remembered()
    fast = prepared(model, progress)
    for _ in range(2):
        assert torch.equal(fast(random_images(BATCH)), predictor(model)(random_images(BATCH)))
    assert progress.lines == ["The model cannot be compiled here (no compiler); it runs eager."]


def test_a_copy_with_other_attributes_does_not_keep_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda _: pytest.fail("of another model"))
    fast, images = prepared(network(), Remembered()), random_images(BATCH)
    assert torch.equal(replace(fast, flip=True)(images), replace(predictor(network()), flip=True)(images))
