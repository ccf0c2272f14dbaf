"""Heads: a network is its features and its head, in one piece or in two."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from noisystudent.config import ModelConfig
from noisystudent.errors import InputError
from noisystudent.models import Classifier, build_model
from noisystudent.models.heads import Head, Mlp, classifier_path, use_mlp

KINDS = ("linear", "mlp")


def head(kind: str, width: int = 6, classes: int = 3, dropout: float = 0.0) -> Head:
    return Head(kind, width, classes, dropout=dropout, name="resnet8_16", resolution=16)  # type: ignore[arg-type]


def network(name: str, **fields: Any) -> Classifier:
    """In evaluation mode, with statistics of batch norms that change what they get."""
    model = build_model(ModelConfig(name=name, **{"dropout": 0.0, "stochastic_depth": 0.0} | fields), 3, 32)
    draws = torch.Generator().manual_seed(0)
    for module in model.net.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(generator=draws)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2, generator=draws)  # type: ignore[union-attr]
    return model.eval()


def pooled(model: Classifier, images: Tensor) -> Tensor:
    net: Any = model.net
    features: Tensor = net.forward_head(net.forward_features((images / 255 - model.mean) / model.std), True)
    return features


IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
USUAL = ["resnet8_16", "wrn10_1", "test_resnet", "test_vit", "test_efficientnet", "test_convnext"]
# Each has layers of its own between the pooled features and the classifier.
UNUSUAL = ["efficientvit_m0", "shvit_s1", "iformer_t", "caformer_s18"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", USUAL + UNUSUAL)
def test_a_network_is_its_classifier_on_its_features(name: str, kind: str) -> None:
    model = network(name, head=kind)
    with torch.inference_mode():
        features = model.features(IMAGES)
        classifier = model.net.get_submodule(classifier_path(model.net))
        assert features.shape == (4, next(classifier.parameters()).shape[1])
        assert torch.equal(classifier(features), model(IMAGES))


@pytest.mark.parametrize("name", USUAL)
def test_the_features_of_usual_networks_are_the_pooled_ones_of_timm(name: str) -> None:
    model = network(name)
    with torch.inference_mode():
        assert torch.equal(model.features(IMAGES), pooled(model, IMAGES))


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224", "caformer_s18"])
def test_a_network_without_a_single_classifier_has_pooled_features(name: str) -> None:
    model = network(name)
    if "distilled" not in name:
        model.net.reset_classifier(0)  # type: ignore[operator]
    with torch.inference_mode():
        assert torch.equal(model.features(IMAGES), pooled(model, IMAGES))


@pytest.mark.parametrize("kind", KINDS)
def test_features_have_no_dropout_and_leave_the_network_as_it_was(kind: str) -> None:
    model = network("resnet8_16", head=kind, dropout=0.5)
    before, plain = pickle.dumps(model), model.features(IMAGES)
    assert pickle.dumps(model) == before
    model.noise.draw(0, 0, torch.ones(4, dtype=torch.bool))
    assert torch.equal(model.features(IMAGES), plain)
    noised = model(IMAGES)
    model.noise.off()
    assert not torch.equal(noised, model(IMAGES))


def test_the_backbone_does_not_depend_on_the_head() -> None:
    linear, mlp = (
        build_model(ModelConfig(name="resnet8_16", head=kind), 3, 16, seed=4).net.state_dict()  # type: ignore[arg-type]
        for kind in KINDS
    )
    trunk = [name for name in linear if not name.startswith("fc.")]
    assert trunk and all(torch.equal(linear[name], mlp[name]) for name in trunk)
    assert mlp["fc.0.weight"].shape == (64, 64) and mlp["fc.2.weight"].shape == (3, 64)


@settings(max_examples=20)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), seed=st.integers(0, 99))
@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_head_gives_the_same_logits(kind: str, scale: float, shift: float, seed: int) -> None:
    torch.manual_seed(seed)
    features = torch.randn(50, 6) * scale + shift
    one = head(kind)
    one.standardize(features)
    plain = torch.nn.Linear(6, 3) if kind == "linear" else Mlp(6, 3)
    plain.load_state_dict(one.folded())
    size = 1 + abs(shift) / scale  # float32 loses digits if the mean is far larger than the spread
    with torch.no_grad():
        assert torch.allclose(plain(features), one(features), rtol=0, atol=2e-5 * size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_head_can_be_loaded_again(kind: str) -> None:
    first, second = head(kind), head(kind)
    first.standardize(torch.randn(40, 6) * 3 + 2)
    second.standardize(torch.randn(30, 6) * 0.1 - 1)
    second.load_folded(first.folded())
    features = torch.randn(20, 6)
    with torch.no_grad():
        assert torch.allclose(first(features), second(features), atol=1e-5)


def test_standardized_features_have_mean_0_and_mean_square_1() -> None:
    one, features = head("linear"), torch.randn(1000, 6) * torch.tensor([1.0, 2, 3, 0, 5, 6]) + 7
    one.standardize(features)
    standardized = (features - one.centre) / one.scale
    assert standardized.mean(dim=0).abs().max() < 1e-5
    assert standardized.square().mean() == pytest.approx(1.0, abs=1e-5)


def test_features_without_spread_are_not_divided_by_0() -> None:
    one = head("linear")
    one.standardize(torch.ones(5, 6))
    assert torch.isfinite(one(torch.ones(2, 6))).all()


@pytest.mark.parametrize("kind, width", [("linear", 8), ("mlp", 8)])
def test_dropout_acts_on_the_input_of_the_last_layer(kind: str, width: int) -> None:
    one = head(kind, width, dropout=0.5)
    features = torch.randn(64, width)
    plain = one(features)
    one.noise.draw(0, 3, torch.arange(64) < 32)
    noised = one(features)
    assert not torch.equal(noised[:32], plain[:32]) and torch.equal(noised[32:], plain[32:])
    one.noise.off()
    assert torch.equal(one(features), plain)


def test_dropout_works_in_a_network_with_an_mlp() -> None:
    config = ModelConfig(name="resnet8_16", head="mlp", dropout=0.5, stochastic_depth=0.0)
    model = build_model(config, 3, 16).eval()
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    plain = model(images)
    model.noise.draw(0, 0, torch.ones(8, dtype=torch.bool))
    assert not torch.equal(model(images), plain)


def test_a_network_without_a_single_linear_classifier_is_named() -> None:
    net: Any = build_model(ModelConfig(name="resnet8_16", dropout=0.0, stochastic_depth=0.0), 3, 16).net
    net.pretrained_cfg["classifier"] = ("fc", "body")
    with pytest.raises(InputError, match="not a single linear layer"):
        use_mlp(net)
