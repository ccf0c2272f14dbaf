"""Networks for small images, registered with timm, so that `timm.create_model("wrn28_2")` builds one.

name                    parameters (10 classes)  use
wrn28_2                 1.47 M                   standard model for CIFAR-10 and SVHN with few labels
wrn28_4 … wrn28_10      5.85 M … 36.5 M          larger students of wrn28_2
wrn10_1 … wrn16_4       0.08 M … 2.75 M          small teachers and students
resnet8_16, _32, _64    0.12 M, 0.46 M, 1.85 M   minutes on a CPU, for 8 to 64 pixels; named by base width
efficientnet_b0_32px    4.02 M                   SVHN run of the official code
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import DropPath, create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

Builder = Callable[..., nn.Module]
"""(name, pretrained=…, further arguments of timm.create_model) -> network."""

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
SVHN_MEAN = (0.4376821, 0.4437697, 0.47280442)  # task_info.py of the official code
SVHN_STD = (0.19803012, 0.20101562, 0.19703614)

WIDE_RESNETS = ((10, 1), (10, 2), (16, 1), (16, 2), (16, 4), (28, 2), (28, 4), (28, 8), (28, 10))
RESNET8_WIDTHS = (16, 32, 64)  # channels of the first convolution


def _conv(channels_in: int, channels_out: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)


def _conv_bn_relu(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_conv(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out), nn.ReLU())


def _drop_path(rate: float) -> nn.Module:
    return DropPath(rate) if rate > 0 else nn.Identity()


def _linear_rule(rate: float, blocks: int) -> list[float]:
    """Stochastic-depth rates from 0 at the first block to `rate` at the last (Huang et al., 2016)."""
    return [rate * i / (blocks - 1) for i in range(blocks)]


class PreActBlock(nn.Module):
    """Block of a wide ResNet: BN-ReLU-conv twice, added to the shortcut.

    If the shortcut is a projection, it starts after the first BN-ReLU.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = _conv(channels_in, channels_out, stride)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = _conv(channels_out, channels_out)
        self.shortcut = (
            None if channels_in == channels_out else _conv(channels_in, channels_out, stride, kernel=1)
        )
        self.drop_path = _drop_path(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block: (B, channels_in, H, W) -> (B, channels_out, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        branch = self.conv2(F.relu(self.bn2(self.conv1(active))))
        out: Tensor = shortcut + self.drop_path(branch)
        return out


class ResidualBlock(nn.Module):
    """Block of ResNet at constant width: conv-BN-ReLU, conv-BN, added to the input, ReLU."""

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.drop_path = _drop_path(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block: (B, channels, H, W) -> the same shape."""
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(x + self.drop_path(branch))


class SmallNet(nn.Module):
    """A convolutional body, global pooling and a linear classifier, with timm's interface.

    Args:
        body: network (B, in_chans, H, W) -> (B, num_features, h, w), after its last activation function.
        num_features: number of channels of the last feature map.
        num_classes: number of classes. 0: no classifier.
        drop_rate: dropout rate before the classifier, with torch's global generator as in every timm model.
        global_pool: timm's name of the pooling.
    """

    def __init__(
        self, body: nn.Module, num_features: int, num_classes: int, drop_rate: float, global_pool: str
    ) -> None:
        super().__init__()
        self.body = body
        self.num_features = self.head_hidden_size = num_features  # timm reads both names
        self.drop_rate = drop_rate
        self.reset_classifier(num_classes, global_pool)
        self.apply(_init_weights)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names, by which timm divides a network into stem, blocks and head."""
        resnet8 = [
            (rf"^body\.{name}\.", (i,)) for i, name in enumerate(("down1", "block1", "down2", "block2"))
        ]
        # 99999 is timm's number for layers after the last block.
        wide = r"^body\.group(\d+)\." if coarse else r"^body\.group(\d+)\.(\d+)\."
        return {"stem": r"^body\.stem\.", "blocks": [(wide, None), *resnet8, (r"^body\.bn\.", (99999,))]}

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer, or an identity if there are no classes."""
        classifier: nn.Module = self.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Replace the classifier by a new one with random weights."""
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last feature map: (B, in_chans, H, W) -> (B, num_features, h, w)."""
        features: Tensor = self.body(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify: (B, num_features, h, w) -> logits (B, num_classes).

        With `pre_logits`, return the input of the classifier (B, num_features).
        """
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits: (B, in_chans, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # as timm's ResNet
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def wide_resnet(
    depth: int,
    width: int,
    num_classes: int = 10,
    *,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    global_pool: str = "avg",
) -> SmallNet:
    """Build WRN-depth-width of Zagoruyko and Komodakis (2016), with ReLU and without dropout in the blocks.

    It has three groups of (depth - 4) / 6 blocks. The second and the third group halve height and width.
    """
    blocks = (depth - 4) // 6
    channels = [16, 16 * width, 32 * width, 64 * width]
    rates = _linear_rule(drop_path_rate, 3 * blocks)
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_conv(in_chans, channels[0]))  # for group_matcher
    for group in range(3):
        entry = (channels[group], 2 if group else 1)  # the first block changes channels and stride
        shapes = [entry] + [(channels[group + 1], 1)] * (blocks - 1)
        layers[f"group{group + 1}"] = nn.Sequential(
            *(
                PreActBlock(channels_in, channels[group + 1], stride, rates[group * blocks + i])
                for i, (channels_in, stride) in enumerate(shapes)
            )
        )
    layers["bn"] = nn.BatchNorm2d(channels[3])
    layers["relu"] = nn.ReLU()
    return SmallNet(nn.Sequential(layers), channels[3], num_classes, drop_rate, global_pool)


def resnet8(
    width: int,
    num_classes: int = 10,
    *,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    global_pool: str = "avg",
) -> SmallNet:
    """Build a network of eight layers.

    A convolution, twice (a stride-2 convolution that doubles the width, a residual block), a linear layer:
    the ResNet-9 of the DAWNBench entries with one convolution less, not He's ResNet-8 for CIFAR.
    """
    rates = _linear_rule(drop_path_rate, 2)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=_conv_bn_relu(in_chans, width, 1),
        down1=_conv_bn_relu(width, 2 * width, 2),
        block1=ResidualBlock(2 * width, rates[0]),
        down2=_conv_bn_relu(2 * width, 4 * width, 2),
        block2=ResidualBlock(4 * width, rates[1]),
    )
    return SmallNet(nn.Sequential(layers), 4 * width, num_classes, drop_rate, global_pool)


def efficientnet_b0_32px(**kwargs: Any) -> nn.Module:
    """Build EfficientNet-B0 with stride 1 in stages 2 and 3: a 32-pixel image gives a last map of 4x4.

    This is `small_image_model` of the official code, with TensorFlow's padding and batch-norm constants.
    """
    stages = [  # timm's notation: block type, repeats, kernel, stride, expansion, channels, se ratio
        ["ds_r1_k3_s1_e1_c16_se0.25"],
        ["ir_r2_k3_s1_e6_c24_se0.25"],
        ["ir_r2_k5_s1_e6_c40_se0.25"],
        ["ir_r3_k3_s2_e6_c80_se0.25"],
        ["ir_r3_k5_s1_e6_c112_se0.25"],
        ["ir_r4_k5_s2_e6_c192_se0.25"],
        ["ir_r1_k3_s1_e6_c320_se0.25"],
    ]
    defaults: dict[str, Any] = {
        "block_args": decode_arch_def(stages),
        "num_features": 1280,
        "stem_size": 32,
        "pad_type": "same",
        "act_layer": nn.SiLU,
        "norm_layer": partial(nn.BatchNorm2d, momentum=0.01, eps=1e-3),  # TensorFlow: 0.99
    }
    net: nn.Module = EfficientNet(**(defaults | kwargs))
    return net


_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    **{f"wrn{depth}_{width}": partial(wide_resnet, depth, width) for depth, width in WIDE_RESNETS},
    **{f"resnet8_{width}": partial(resnet8, width) for width in RESNET8_WIDTHS},
    "efficientnet_b0_32px": efficientnet_b0_32px,
}


def _cfg(name: str) -> dict[str, Any]:
    """Configuration of a network in timm's form."""
    if name.startswith("efficientnet"):
        mean, std, first_conv, classifier = SVHN_MEAN, SVHN_STD, "conv_stem", "classifier"
    else:
        first_conv = "body.stem.0" if name.startswith("resnet8") else "body.stem"
        mean, std, classifier = CIFAR10_MEAN, CIFAR10_STD, "fc"
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "crop_pct": 1.0,  # small images are evaluated without a crop
        "mean": mean,
        "std": std,
        "first_conv": first_conv,
        "classifier": classifier,
    }


# timm reads the configurations of a module from this variable.
default_cfgs = generate_default_cfgs({name: _cfg(name) for name in _BUILDERS})


def _entrypoint(name: str, builder: Builder, module: str) -> Callable[..., nn.Module]:
    """Function that timm calls to build the network `name`."""

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return builder(name, pretrained=pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = module  # timm looks for default_cfgs in this module
    return entrypoint


def register_all(builders: Mapping[str, Builder], module: str) -> None:
    """Register networks with timm; names that are already registered are skipped.

    Args:
        builders: builder of each network by name.
        module: name of the module whose `default_cfgs` has the configurations.
    """
    for name, builder in builders.items():
        if not timm.is_model(name):  # timm warns if a name is registered twice
            register_model(_entrypoint(name, builder, module))


def register() -> None:
    """Register the networks of this module with timm."""
    register_all({name: partial(build_model_with_cfg, net) for name, net in _BUILDERS.items()}, __name__)
