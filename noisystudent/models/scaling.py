"""Network sizes: EfficientNet's compound scaling by phi or by a budget, and the next larger student.

One step of phi makes a network 1.2 times deeper and 1.1 times wider and its images 1.15 times larger. So the
multiply-adds about double (Tan and Le, 2019: alpha * beta**2 * gamma**2 = 1.92).

    >>> from_phi(1).model_config()  # of width 1.1, depth 1.2, at 256 pixels
    >>> largest(multiply_adds, 1e9).model_config()  # the largest with 1e9 multiply-adds for each image

`register` adds these models to timm: efficientnet_scaled (options width and depth), and efficientnet_l0 and
efficientnet_l1 of the paper's first version. Each also exists as tf_…, with TensorFlow's padding and
batch-norm epsilon, as in timm. wrn_scaled has the options width, a whole number, and depth, 6 n + 4 layers.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.efficientnet import _gen_efficientnet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from noisystudent.config import ModelConfig
from noisystudent.errors import InputError
from noisystudent.models import small

ALPHA, BETA, GAMMA = 1.2, 1.1, 1.15
PHI_RANGE = (-6.0, 12.0)  # 1.59 M parameters at 96 pixels … 415 M at 1200
PHI_STEP = 0.01
RESOLUTION_STEP = 8  # as for channels; so three of the network's five halvings are exact
LARGEST_SIZE = 32  # of the options width and depth; larger values are typing errors
WRN_WIDTHS, WRN_DEPTHS = range(1, 33), range(10, 1000, 6)

Measure = Callable[["Scaled"], float]
"""Network -> its size in any unit, such as parameters."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """One network of a scaled family.

    Attributes:
        name: name of the model in timm.
        width: multiplier of the number of channels, which is rounded to multiples of 8. Wide ResNet: k.
        depth: multiplier of the number of blocks of each stage, which is rounded up. Wide ResNet: number of
            layers.
        resolution: side of the training images in pixels.
        dropout: dropout rate before the classifier. None: not published.
        test_resolution: side of the test images in pixels. None: equal to `resolution`.
    """

    name: str
    width: float
    depth: float
    resolution: int
    dropout: float | None
    test_resolution: int | None = None

    def model_config(self, stochastic_depth: float = 0.2) -> ModelConfig:
        """Configuration for `build_model`; a dropout that was not published is 0.5, as for B6, B7 and L2."""
        return ModelConfig(
            name=self.name,
            resolution=self.resolution,
            dropout=0.5 if self.dropout is None else self.dropout,
            stochastic_depth=stochastic_depth,
            options={"width": self.width, "depth": self.depth} if self.name.endswith("_scaled") else {},
        )


# B0 to B7 and L2 are those of the published code. L0, L1 and the training resolution of L2 are those of the
# paper's first version.
PUBLISHED = {
    scaled.name.removeprefix("efficientnet_"): scaled
    for scaled in (
        Scaled("efficientnet_b0", 1.0, 1.0, 224, 0.2),
        Scaled("efficientnet_b1", 1.0, 1.1, 240, 0.2),
        Scaled("efficientnet_b2", 1.1, 1.2, 260, 0.3),
        Scaled("efficientnet_b3", 1.2, 1.4, 300, 0.3),
        Scaled("efficientnet_b4", 1.4, 1.8, 380, 0.4),
        Scaled("efficientnet_b5", 1.6, 2.2, 456, 0.4),
        Scaled("efficientnet_b6", 1.8, 2.6, 528, 0.5),
        Scaled("efficientnet_b7", 2.0, 3.1, 600, 0.5),
        Scaled("efficientnet_l0", 2.8, 3.7, 380, None, 600),
        Scaled("efficientnet_l1", 3.9, 3.7, 380, None, 600),
        Scaled("efficientnet_l2", 4.3, 5.3, 475, 0.5, 800),
    )
}


def from_phi(phi: float, base: int = 224) -> Scaled:
    """Return the EfficientNet of a value of phi; phi = 0 is B0.

    B1 to B7 have nearly the multiply-adds of phi = 1 to 7, but not exactly, because their authors rounded the
    coefficients. Dropout is 0.2, plus 0.1 for every two steps of phi, at most 0.5. These are the published
    values of B0 to B7 if their number is taken as phi.

    Args:
        phi: within PHI_RANGE.
        base: side of the images in pixels at phi 0. The scaled side is rounded to a multiple of 8.

    Raises:
        InputError: phi is out of range, or base is below 8.
    """
    low, high = PHI_RANGE
    if not low <= phi <= high:
        raise InputError(f"phi is {phi:g}; it must be between {low:g} and {high:g}")
    if base < RESOLUTION_STEP:
        raise InputError(f"base is {base}; it must be at least {RESOLUTION_STEP} pixels")
    steps = max(1, round(base * GAMMA**phi / RESOLUTION_STEP))
    dropout = round(min(0.5, max(0.2, 0.2 + 0.1 * math.floor(phi / 2))), 1)
    return Scaled(
        "efficientnet_scaled", round(BETA**phi, 3), round(ALPHA**phi, 3), steps * RESOLUTION_STEP, dropout
    )


def efficientnets(base: int = 224) -> Sequence[Scaled]:
    """EfficientNets of `from_phi` from the smallest to the largest, with PHI_STEP between neighbours."""
    first, last = (round(phi / PHI_STEP) for phi in PHI_RANGE)
    return [from_phi(i * PHI_STEP, base) for i in range(first, last + 1)]


def wide_resnets(depth: int = 28, resolution: int = 32) -> Sequence[Scaled]:
    """WRN-depth-k for k = 1 … 32; networks of models/small.py have their names there."""
    return [
        Scaled(
            f"wrn{depth}_{k}" if (depth, k) in small.WIDE_RESNETS else "wrn_scaled", k, depth, resolution, 0.0
        )
        for k in WRN_WIDTHS
    ]


@lru_cache(maxsize=4096)  # more than the networks of a family
def parameters(scaled: Scaled, num_classes: int = 1000) -> int:
    """Number of weights of a network; no memory is allocated for them."""
    return sum(p.numel() for p in _on_meta(scaled, num_classes).parameters())


@lru_cache(maxsize=4096)
def multiply_adds(scaled: Scaled, num_classes: int = 1000) -> int:
    """Multiply-adds of a forward pass of one image, in convolutions and linear layers; papers say FLOPs."""
    net = _on_meta(scaled, num_classes).eval()
    images = torch.empty(1, 3, scaled.resolution, scaled.resolution, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(images)
    return int(counter.get_total_flops()) // 2  # torch counts a multiply-add as two operations


def largest(measure: Measure, budget: float, family: Sequence[Scaled] | None = None) -> Scaled:
    """Return the largest network of a family whose measure is at most the budget.

    First, networks at regular distances are measured, from the smallest up to the first above the budget.
    Then the last interval is bisected. About 12 to 24 networks are measured, and none is much larger than
    the budget. So `measure` may be a measured time.

    Args:
        measure: `parameters`, `multiply_adds`, or another function, such as seconds for each training step.
            It must grow along the family.
        budget: largest allowed value, in units of `measure`.
        family: networks from small to large. None: `efficientnets()`.

    Raises:
        InputError: the smallest network is above the budget.
    """
    family = efficientnets() if family is None else family
    # For `efficientnets` the stride is one step of phi, so no measured network is far above the budget.
    stride = max(1, len(family) // 18)
    above = next((i for i in range(0, len(family), stride) if measure(family[i]) > budget), len(family))
    if above == 0:
        raise InputError(f"budget is {budget:g}; the smallest network needs {measure(family[0]):g}")
    fitting = bisect_right(family, budget, lo=above - stride, hi=above, key=measure)
    return family[fitting - 1]


def next_larger(name: str) -> str:
    """Name of the next larger model, for students that grow: b0 -> b1 … b7 -> l2, wrn28_2 -> wrn28_4, ….

    L2 follows B7, as in the paper. L1 follows L0 and L2 follows L1, as in its first version. The prefix tf_
    is kept. The tag of published weights is removed, because other models do not have it.

    Raises:
        InputError: the model is the largest of its family, its family is not known, or its size is given by
            options (see `grown`).
    """
    larger = LARGER.get(name.split(".")[0])  # the tag of published weights follows the dot
    if larger is None:
        remedy = "grown() scales it" if name.endswith("_scaled") else "give the student's model by name"
        raise InputError(f"model.name is {name}, which has no next larger model by name; {remedy}")
    return larger


def grown(model: ModelConfig) -> ModelConfig:
    """Return the next larger student, with the same noise and the same resolution.

    A model whose size is given by options grows by one step of phi in width and depth. A wide ResNet gets
    about twice the multiply-adds.

    Raises:
        InputError: see `next_larger`, or the options width and depth are not numbers in the allowed range.
    """
    if not model.name.endswith("_scaled"):
        return replace(model, name=next_larger(model.name))
    if model.name == "wrn_scaled":
        # Multiply-adds grow with the square of the width.
        width = math.ceil(_number("width", model.options.get("width", 2)) * math.sqrt(2))
        return replace(model, options=model.options | {"width": width})
    sizes = {
        key: round(_number(key, model.options.get(key, 1.0)) * factor, 3)
        for key, factor in (("width", BETA), ("depth", ALPHA))
    }
    return replace(model, options=model.options | sizes)


def _chains() -> dict[str, str]:
    chains = [[f"resnet8_{width}" for width in small.RESNET8_WIDTHS]]
    for layers in sorted({layers for layers, _ in small.WIDE_RESNETS}):
        chains.append([f"wrn{depth}_{k}" for depth, k in small.WIDE_RESNETS if depth == layers])
    for prefix in ("efficientnet_", "tf_efficientnet_"):
        for sizes in ("b0 b1 b2 b3 b4 b5 b6 b7 l2", "l0 l1 l2"):  # the paper, its first version
            chains.append([prefix + size for size in sizes.split()])
    return dict(pair for chain in chains for pair in pairwise(chain))


LARGER = _chains()
"""Name of each model that has a next larger one -> name of that one."""


def _number(key: str, value: object) -> float:
    """Return the value of a size option; raise if it is not allowed."""
    if isinstance(value, int | float) and 0 < value <= LARGEST_SIZE:
        return value
    raise InputError(
        f"model.options has {key!r} {value!r}; it must be a number above 0 and at most {LARGEST_SIZE}"
    )


def _on_meta(scaled: Scaled, num_classes: int) -> nn.Module:
    """Build the network on the meta device, which has shapes but no memory."""
    with torch.device("meta"):
        options = scaled.model_config().options
        net: nn.Module = timm.create_model(scaled.name, num_classes=num_classes, **options)
    return net


def _efficientnet(name: str, sizes: tuple[float, float] | None = None, **kwargs: Any) -> nn.Module:
    width, depth = sizes or (_number(key, kwargs.pop(key, 1.0)) for key in ("width", "depth"))
    if name.startswith("tf_"):  # the settings of timm's own tf_ models
        kwargs = {"bn_eps": 1e-3, "pad_type": "same"} | kwargs
    net: nn.Module = _gen_efficientnet(name, width, depth, **kwargs)
    return net


def _wide_resnet(
    name: str, pretrained: bool = False, width: object = 2, depth: object = 28, **kwargs: Any
) -> nn.Module:
    if not isinstance(width, int) or not 1 <= width <= LARGEST_SIZE:
        raise InputError(
            f"model.options has 'width' {width!r}; it must be a whole number from 1 to {LARGEST_SIZE}"
        )
    if depth not in WRN_DEPTHS:
        raise InputError(f"model.options has 'depth' {depth!r}; it must be 6 n + 4: 10, 16, 22, 28, 34, …")
    net: nn.Module = build_model_with_cfg(
        small.wide_resnet, name, pretrained, width=width, depth=depth, **kwargs
    )
    return net


_BUILDERS: dict[str, small.Builder] = {"wrn_scaled": _wide_resnet}
for _prefix in ("", "tf_"):
    _BUILDERS[f"{_prefix}efficientnet_scaled"] = _efficientnet
    for _scaled in (PUBLISHED["l0"], PUBLISHED["l1"]):
        _BUILDERS[_prefix + _scaled.name] = partial(_efficientnet, sizes=(_scaled.width, _scaled.depth))

_CFG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "conv_stem",
    "classifier": "classifier",
}
# timm reads the configurations of a module from this variable.
default_cfgs = generate_default_cfgs(dict.fromkeys(_BUILDERS, _CFG))
default_cfgs["wrn_scaled"] = small.default_cfgs["wrn28_2"]  # the same input and layer names


def register() -> None:
    """Register the networks of this module with timm."""
    small.register_all(_BUILDERS, __name__)
