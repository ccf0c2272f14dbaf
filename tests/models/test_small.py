"""Small networks have the published sizes and shapes, and timm's interface."""

import importlib

import pytest
import timm
import torch
from timm.layers import DropPath

from noisystudent.models import small

PARAMETERS = {  # 10 classes
    "wrn28_2": 1_467_610,  # the 1.47 M of the semi-supervised literature
    "wrn28_10": 36_479_194,  # the 36.5 M of Zagoruyko and Komodakis
    "resnet8_16": 116_890,
    "resnet8_32": 464_170,
    "efficientnet_b0_32px": 4_020_358,  # the 4.02 M of the official SVHN model
}
NAMES = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__ == small.__name__]


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(timm.create_model(name, num_classes=10)) == count


def test_importing_again_neither_warns_nor_replaces() -> None:
    assert {"wrn28_2", "wrn28_8", "wrn28_10", "resnet8_16", "efficientnet_b0_32px"} <= set(NAMES)
    before = timm.model_entrypoint("wrn28_2")
    importlib.reload(small).register()  # warnings are errors
    assert timm.model_entrypoint("wrn28_2") is before


@pytest.mark.parametrize("name", NAMES)
def test_timm_interface(name: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=7, in_chans=1, drop_rate=0.1, drop_path_rate=0.2).eval()
        images = torch.empty(2, 1, 32, 32)
        features = net.forward_features(images)
        assert features.shape[:2] == (2, net.num_features)
        assert net.forward_head(features, pre_logits=True).shape == (2, net.num_features)
        assert net(images).shape == (2, 7)
        assert net.get_classifier().in_features == net.num_features
        assert net.get_classifier() is net.get_submodule(net.default_cfg["classifier"])
        assert net.get_submodule(net.default_cfg["first_conv"]).in_channels == 1
        net.reset_classifier(3)
        assert net(images).shape == (2, 3)
        net.reset_classifier(0)
        assert net(images).shape == (2, net.num_features)


@pytest.mark.parametrize("side", [8, 16, 32, 64])
def test_resnet8_takes_small_sides(side: int) -> None:
    logits = timm.create_model("resnet8_16").eval()(torch.randn(2, 3, side, side))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


def test_stochastic_depth_follows_the_linear_rule() -> None:
    net = timm.create_model("wrn28_2", drop_path_rate=0.22)
    rates = [m.drop_prob for m in net.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.02 * i for i in range(1, 12)])  # block 0 has none
    net = timm.create_model("efficientnet_b0_32px", drop_path_rate=0.2)
    rates = [m.drop_prob for m in net.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.2 * i / 16 for i in range(1, 16)])  # the official code's last is .1875


def test_efficientnet_32px_is_the_official_variant() -> None:
    net = timm.create_model("efficientnet_b0_32px").eval()
    assert net.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 1280, 4, 4)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.01, 1e-3)}
    published = timm.create_model("tf_efficientnet_b0", num_classes=10)
    shapes = {key: value.shape for key, value in published.state_dict().items()}
    assert {key: value.shape for key, value in net.state_dict().items()} == shapes  # only the strides differ


def test_preactivation_block_projects_the_activated_input() -> None:
    torch.manual_seed(0)
    block = small.PreActBlock(4, 6, 2, 0.0).eval()
    assert block.shortcut is not None
    x = torch.randn(2, 4, 8, 8)
    active = torch.relu(block.bn1(x))
    branch = block.conv2(torch.relu(block.bn2(block.conv1(active))))
    torch.testing.assert_close(block(x), block.shortcut(active) + branch)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(block(x), block.shortcut(active))
