"""The layers of a network: every parameter is in one of them and in one group, with the rate of timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import param_groups_layer_decay

from noisystudent.config import ModelConfig, TrainConfig
from noisystudent.config.rates import LEARNING_RATES
from noisystudent.errors import InputError
from noisystudent.models import Classifier, build_model
from noisystudent.train.optim import build_optimizer, lr_scales, parameter_groups

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
SMALL = ("test_vit", "test_convnext", "test_efficientnet", "test_resnet", "resnet8_16", "wrn10_1")
REAL = (
    "vit_small_patch14_dinov2",
    "convnext_tiny",
    "efficientnet_b0",
    "swin_tiny_patch4_window7_224",
    "beit_base_patch16_224",
)


def on_meta(name: str, **fields: Any) -> Classifier:
    with torch.device("meta"):
        return build_model(ModelConfig(name=name, dropout=0.0, stochastic_depth=0.0, **fields), 3, 224)


def check(model: Classifier, config: TrainConfig) -> None:
    """Conservation of the parameters, and agreement with timm."""
    layers = model.layers("train.layer_decay")
    names = [name for layer in layers for name in layer]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert set(model.head()) <= set(layers[-1]) and model.head()
    groups = parameter_groups(model, config)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())
    numbers = sum(parameter.numel() for group in groups for parameter in group["params"])
    assert numbers == sum(parameter.numel() for parameter in model.parameters())
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    reference = param_groups_layer_decay(model.net, layer_decay=config.layer_decay)
    head = {id(model.get_parameter(name)) for name in model.head()}
    for group in reference:
        for parameter in group["params"]:
            factor = config.head_lr_scale if id(parameter) in head else 1.0
            assert scales[id(parameter)] == pytest.approx(factor * group["lr_scale"])


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=10, deadline=None)
@given(decay=st.floats(0.1, 1.0), head=st.floats(0.0, 100.0))
def test_every_parameter_is_in_one_group_with_the_rate_of_timm(name: str, decay: float, head: float) -> None:
    check(on_meta(name), TrainConfig(layer_decay=decay, head_lr_scale=head))


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_same_of_real_networks(name: str) -> None:
    if "dinov2" in name or "swin" in name:
        with torch.device("meta"):
            model = build_model(ModelConfig(name=name, stochastic_depth=0.0), 3, 224)
    else:
        model = on_meta(name)
    check(model, TrainConfig(layer_decay=0.75, head_lr_scale=10.0))


def test_without_differences_there_are_the_two_groups_of_the_paper() -> None:
    model = on_meta("test_vit")
    assert lr_scales(model, TrainConfig()) == {}
    decayed, spared = parameter_groups(model, TrainConfig())
    assert (decayed["lr_scale"], spared["lr_scale"]) == (1.0, 1.0)
    named = {id(model.net.get_parameter(name)) for name in ("cls_token", "pos_embed")}
    assert named <= {id(parameter) for parameter in spared["params"]}


def test_the_rate_of_a_group_is_the_rate_times_its_factor() -> None:
    model = build_model(ModelConfig(name="test_vit"), 3, 32)
    config = TrainConfig(lr=0.256, batch_size=1, layer_decay=0.5, head_lr_scale=4.0)
    for group in build_optimizer(model, config).param_groups:
        assert group["lr"].item() == pytest.approx(0.001 * group["lr_scale"])


def test_a_network_without_layers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_meta("test_vit")
    monkeypatch.delattr(type(model.net), "group_matcher")
    with pytest.raises(InputError, match=r"train\.layer_decay is set, but timm defines no blocks"):
        parameter_groups(model, TrainConfig(layer_decay=0.5))


def test_the_page_shows_the_rates() -> None:
    text = PAGE.read_text("utf-8")
    for family, rates in LEARNING_RATES.items():
        cells = " | ".join(f"{rates[name]:g}" for name in ("sgd", "rmsprop_tf", "adamw"))
        assert f"| {family} | {cells} |" in text
