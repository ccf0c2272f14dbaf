"""The layers of a network in timm's order, from the stem to the head, and which parameters are the head's."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import timm.models
from torch import nn

from noisystudent.errors import InputError


def layers(net: Any, field: str) -> list[list[str]]:
    """Names of the parameters of the stem, of each block and of the head, in this order.

    Each parameter of the network is in exactly one layer.

    Args:
        net: timm model.
        field: field of the configuration that needs the layers, for the message.

    Raises:
        InputError: timm defines no layers for this network.
    """
    if not hasattr(net, "group_matcher"):
        raise InputError(f"{field} is set, but timm defines no blocks for {type(net).__name__}; remove it")
    # Not coarse: one group for each block; coarse groups are the stages.
    groups: dict[int, list[str]] = timm.models.group_parameters(net, net.group_matcher(coarse=False))
    return [groups[number] for number in sorted(groups)]


def head_prefixes(net: Any) -> tuple[str, ...]:
    """Prefixes of the weights of the classification layer; networks with distillation have two layers."""
    names = net.pretrained_cfg["classifier"]  # a string or several strings
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def no_weight_decay(net: nn.Module) -> set[str]:
    """Names of the parameters for which timm wants no weight decay, such as position embeddings."""
    listed: set[str] = getattr(net, "no_weight_decay", set)()  # names, or patterns of fnmatch
    return {name for name, _ in net.named_parameters() if any(fnmatch(name, pattern) for pattern in listed)}


def is_frozen(module: nn.Module) -> bool:
    """True if a module has parameters, and none of them is trained."""
    trained = [parameter.requires_grad for parameter in module.parameters()]
    return bool(trained) and not any(trained)
