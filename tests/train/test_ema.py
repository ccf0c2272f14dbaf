from __future__ import annotations

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from noisystudent.train.ema import Ema, decay_at


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def move(model: nn.Module, seed: int) -> None:
    """Change all weights and buffers, as a training step does."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws))
    model(torch.randn(2, 3, 6, 6, generator=draws))


def test_decay_warms_up_as_tensorflow_does() -> None:
    assert [decay_at(t, 0.999) for t in (0, 1, 8)] == [1 / 10, 2 / 11, 0.5]
    assert decay_at(8990, 0.999) == pytest.approx(0.999)
    assert decay_at(10**9, 0.9999) == 0.9999


def test_average_is_the_closed_form_over_parameters_and_statistics() -> None:
    model = make_model()
    ema = Ema(model)
    history = [{k: v.clone() for k, v in model.state_dict().items()}]
    for step in range(12):
        move(model, step)
        ema.update(torch.tensor(decay_at(step, 0.6)))
        history.append({k: v.clone() for k, v in model.state_dict().items()})
    weights = [1.0]
    for step in range(12):  # Σ_i weight_i · value_i, including the initial value
        weights = [w * decay_at(step, 0.6) for w in weights] + [1 - decay_at(step, 0.6)]
    assert sum(weights) == pytest.approx(1)
    for key, average in ema.module.state_dict().items():
        if average.is_floating_point():
            expected = sum(w * h[key] for w, h in zip(weights, history, strict=True))
            torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(average, history[-1][key])
    assert "1.num_batches_tracked" in history[0]


def test_past_the_warm_up_it_agrees_with_timm() -> None:
    model = make_model()
    ema, reference = Ema(model), ModelEmaV3(model, decay=0.9)
    for step in range(200, 210):  # (1+t)/(10+t) > 0.9
        move(model, step)
        ema.update(torch.tensor(decay_at(step, 0.9)))
        reference.update(model)
    for averaged, expected in zip(
        ema.module.state_dict().values(), reference.module.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(averaged, expected)


def test_decay_zero_is_the_model_itself() -> None:
    model = make_model()
    ema = Ema(model)
    move(model, 1)
    ema.update(torch.tensor(0.0))
    for averaged, expected in zip(ema.module.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(averaged, expected)


def test_average_is_a_copy_in_evaluation_mode_without_gradients() -> None:
    model = make_model().train()
    before = [p.clone() for p in model.parameters()]
    ema = Ema(model)
    assert not any(m.training for m in ema.module.modules())
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    move(model, 0)
    assert all(torch.equal(a, b) for a, b in zip(ema.module.parameters(), before, strict=True))
