"""LoRA (Hu et al. 2022, arXiv 2106.09685): a low-rank term beside each weight, in place of the weight itself.

The weights are parametrised by torch, so whatever a network does with a weight, it does with the sum: some
networks of timm read `qkv.weight` and never call the layer, which adapters around the layer would not notice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from noisystudent.errors import InputError
from noisystudent.models.layers import head_prefixes
from noisystudent.runtime import initial_weights


class LowRank(nn.Module):
    """Parametrisation of a weight W (O, …) of N = O · I numbers: W + up · down, at first equal to W.

    The scale of the term is 1, the paper's alpha = rank.

    Attributes:
        up: (O, rank), zeros at first.
        down: (rank, I), uniform at first, as in the paper's code.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(len(weight), rank))
        self.down = nn.Parameter(torch.empty(rank, weight[0].numel()))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The sum, in float32 under autocast too, so that it is the weight that `merge` leaves."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + (self.up @ self.down).view(weight.shape)


def add(net: nn.Module, rank: int, seed: int) -> None:
    """Add low-rank terms, and freeze all other parameters but those of the classification layer.

    The terms are those of linear layers and of convolutions without groups, if their weight is trained and
    has more rows and columns than `rank`.

    Args:
        net: timm model on the CPU; changed in place. Its parameters with terms get other names until `merge`.
        rank: columns of `up`.
        seed: seed of the run. The global generators do not change.

    Raises:
        InputError: no weight is large enough.
    """
    head = head_prefixes(net)
    layers = [
        module
        for name, module in net.named_modules()
        if not f"{name}.".startswith(head) and _has_matrix(module) and _fits(module.weight, rank)
    ]
    if not layers:
        raise InputError(f"model.lora is {rank}; no trained layer has a weight of a higher rank; lower it")
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith(head))
    with initial_weights(seed, "lora"):
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank), unsafe=True)


def merge(net: nn.Module) -> None:
    """Replace each sum by a plain weight of the same value; the network has its ordinary names again."""
    for module in list(net.modules()):
        terms = getattr(module, "parametrizations", {})
        if "weight" in terms and isinstance(terms["weight"][0], LowRank):
            parametrize.remove_parametrizations(module, "weight")


def _has_matrix(module: nn.Module) -> bool:
    """True for a linear layer and for a convolution whose weight is one matrix: all inputs to all outputs."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _fits(weight: Tensor, rank: int) -> bool:
    """True if the weight is trained and a term of this rank has fewer numbers per row and column."""
    return weight.requires_grad and rank < min(len(weight), weight[0].numel())
