from __future__ import annotations

import math
from itertools import pairwise

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from noisystudent.config import TrainConfig
from noisystudent.train.optim import build_optimizer, lr_at, parameter_groups, peak_lr

IMAGENET = TrainConfig(schedule="staircase", lr=0.016, batch_size=2048, optimizer="rmsprop_tf")
IMAGENET_EPOCH = 1_281_167 / 2048


def test_paper_peak_and_final_learning_rate_of_350_epochs() -> None:
    total = round(350 * IMAGENET_EPOCH)
    assert peak_lr(IMAGENET) == pytest.approx(0.128)
    final = lr_at(total - 1, IMAGENET, IMAGENET_EPOCH, total)
    assert final / peak_lr(IMAGENET) == pytest.approx(0.0121, abs=5e-5)


def test_paper_warm_up_is_linear_from_zero_and_the_stairs_count_from_step_zero() -> None:
    total, warmup = round(350 * IMAGENET_EPOCH), 5 * IMAGENET_EPOCH

    def lr(step: float) -> float:
        return lr_at(math.ceil(step), IMAGENET, IMAGENET_EPOCH, total) / peak_lr(IMAGENET)

    assert lr(0) == 0.0
    assert lr(warmup / 2) == pytest.approx(0.5, rel=1e-3)
    assert lr(warmup) == pytest.approx(0.97**2)  # two stairs of 2.4 epochs lie below the warm-up
    assert lr(7.2 * IMAGENET_EPOCH + 1) == pytest.approx(0.97**3)


def test_svhn_stairs_are_742_steps_and_end_at_the_published_rate() -> None:
    config = TrainConfig(schedule="staircase", lr=0.016, batch_size=128, decay_epochs=1.372)
    epoch, total = 69_257 / 128, 109_474
    rates = [lr_at(step, config, epoch, total) for step in range(2706, 2706 + 4 * 742)]
    edges = [i for i in range(1, len(rates)) if rates[i] != rates[i - 1]]
    assert all(abs(second - first - 742) <= 1 for first, second in pairwise(edges))
    assert peak_lr(config) == 0.008
    assert lr_at(2705, config, epoch, total) == pytest.approx(0.008 * 2705 / (5 * epoch))
    assert lr_at(total - 1, config, epoch, total) == pytest.approx(9.1e-5, rel=5e-3)


def test_cosine_falls_from_the_peak_to_nothing() -> None:
    config = TrainConfig(schedule="cosine", lr=0.4, batch_size=64, warmup_epochs=2)
    rates = [lr_at(step, config, 10.0, 200) for step in range(201)]
    assert rates[20] == pytest.approx(0.1) == max(rates)
    assert rates[110] == pytest.approx(0.05)  # half-way down
    assert rates[200] == pytest.approx(0.0, abs=1e-12)


@given(
    st.sampled_from(["cosine", "staircase", "constant"]),
    st.floats(0, 50),
    st.floats(0.3, 1000),
    st.integers(1, 5000),
    st.data(),
)
def test_every_schedule_stays_between_zero_and_the_peak_and_warms_up_at_most_a_fifth(
    schedule: str, warmup_epochs: float, epoch: float, total: int, data: st.DataObject
) -> None:
    config = TrainConfig(schedule=schedule, lr=1.0, batch_size=256, warmup_epochs=warmup_epochs)  # type: ignore[arg-type]
    step = data.draw(st.integers(0, total - 1))
    assert 0.0 <= lr_at(step, config, epoch, total) <= 1.0
    if schedule == "constant" and step >= 0.2 * total:
        assert lr_at(step, config, epoch, total) == 1.0


def train_by_hand(config: TrainConfig, grads: list[Tensor]) -> Tensor:
    """Weights after `grads`, by the formulas of TensorFlow's RMSProp and of Nesterov's method."""
    weight, square, velocity = torch.ones(4), torch.ones(4), torch.zeros(4)
    lr = peak_lr(config)
    for given_grad in grads:
        grad = given_grad + config.weight_decay * weight
        if config.optimizer == "rmsprop_tf":
            square = 0.9 * square + 0.1 * grad**2
            velocity = config.momentum * velocity + lr * grad / torch.sqrt(square + 1e-3)
            weight = weight - velocity
        else:
            velocity = config.momentum * velocity + grad
            weight = weight - lr * (grad + config.momentum * velocity)
    return weight


@pytest.mark.parametrize("name", ["rmsprop_tf", "sgd"])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_update_follows_the_formula(name: str, momentum: float) -> None:
    config = TrainConfig(optimizer=name, lr=0.3, batch_size=256, weight_decay=0.01, momentum=momentum)  # type: ignore[arg-type]
    module = nn.Linear(4, 1, bias=False)
    nn.init.ones_(module.weight)
    optimizer = build_optimizer(module, config)
    grads = list(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    for grad in grads:
        module.weight.grad = grad[None].clone()
        optimizer.step()
    torch.testing.assert_close(module.weight[0].detach(), train_by_hand(config, grads))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext"])
def test_all_but_normalization_parameters_decay(name: str) -> None:
    model = timm.create_model(name, num_classes=5)
    decayed, spared = parameter_groups(model, TrainConfig(weight_decay=0.1))
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    kinds = (nn.BatchNorm2d, nn.LayerNorm)  # timm's own descend from these
    norms = {id(p) for m in model.modules() if isinstance(m, kinds) for p in m.parameters()}
    # timm's own list, such as position embeddings
    norms |= {id(p) for n, p in model.named_parameters() if n in getattr(model, "no_weight_decay", set)()}
    assert {id(p) for p in spared["params"]} == norms
    assert {id(p) for p in decayed["params"]} == {id(p) for p in model.parameters()} - norms
    assert any(p.ndim == 1 for p in decayed["params"])  # the paper decays biases


def test_frozen_parameters_are_left_out_and_a_model_without_norms_has_one_group() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    (group,) = build_optimizer(model, TrainConfig(optimizer="adamw")).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model[1].parameters()]
    assert isinstance(build_optimizer(model, TrainConfig(optimizer="adamw")), torch.optim.AdamW)
