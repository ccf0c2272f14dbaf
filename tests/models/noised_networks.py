"""Small networks, and the masks of their noise."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from noisystudent.models.noise import MaskedDropPath


def tiny(name: str, stochastic_depth: float = 0.5) -> Any:  # a timm model
    torch.manual_seed(1)
    size = {"img_size": 32} if "vit" in name else {}
    return timm.create_model(name, num_classes=5, drop_path_rate=stochastic_depth, **size).eval()


def paths(net: nn.Module) -> list[MaskedDropPath]:
    return [module for module in net.modules() if isinstance(module, MaskedDropPath)]


def path_masks(net: nn.Module) -> Tensor:
    """Copy of the masks (blocks, B)."""
    return torch.stack([path.mask for path in paths(net) if path.mask is not None])


def feature_masks(net: Any, batch: int) -> Tensor:
    """Masks (B, F): the input of the classifier if all features are 1."""
    seen: list[Tensor] = []
    classifier = net.get_classifier()
    hook = classifier.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].clone()))
    classifier(torch.ones(batch, classifier.in_features))
    hook.remove()
    return seen[0]
