"""The next smaller network and resolution: the steps of `scaling` downwards."""

from __future__ import annotations

import math
from dataclasses import replace

from noisystudent.config import ModelConfig
from noisystudent.models.scaling import ALPHA, BETA, GAMMA, LARGER, PHI_RANGE, RESOLUTION_STEP

_LEAST_SIDE = 64  # pixels; smaller images are of sets that are small by nature, such as CIFAR-10
# B7 stands before L2 in the paper, and L1 in its first version: the first chain counts.
_SMALLER = {larger: smaller for smaller, larger in reversed(LARGER.items())}


def smaller(model: ModelConfig) -> ModelConfig:
    """Return the next smaller network, with the same noise and the same resolution: the reverse of `grown`.

    A network stays as it is if it is the smallest of its family, if its family is not known, or if it starts
    from published weights, which are of this network alone.
    """
    if model.pretrained:
        return model
    if not model.name.endswith("_scaled"):
        return replace(model, name=_SMALLER.get(model.name.split(".")[0], model.name))
    if model.name == "wrn_scaled":
        width = model.options.get("width", 2)
        assert isinstance(width, int)  # the network was built with it
        return replace(model, options=model.options | {"width": max(1, math.floor(width / math.sqrt(2)))})
    sizes: dict[str, object] = {}
    for key, factor in (("width", BETA), ("depth", ALPHA)):
        size = model.options.get(key, 1.0)
        assert isinstance(size, int | float)
        sizes[key] = max(round(factor ** PHI_RANGE[0], 3), round(size / factor, 3))
    return replace(model, options=model.options | sizes)


def smaller_side(side: int) -> int:
    """Return the next smaller side of images in pixels: one step of phi, and not below 64."""
    if side <= _LEAST_SIDE:
        return side
    return max(_LEAST_SIDE, round(side / GAMMA / RESOLUTION_STEP) * RESOLUTION_STEP)
