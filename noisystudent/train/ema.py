"""The exponential moving average of a model: the weights that validate, label and become the next teacher."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn


def decay_at(step: int, decay: float) -> float:
    """Decay of update `step` = 0, 1, …: min(decay, (1+t)/(10+t)), TensorFlow's `num_updates` warm-up."""
    return min(decay, (1 + step) / (10 + step))


def _tensors(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers: (floating point, others such as batch-norm counters)."""
    tensors = [tensor.detach() for tensor in chain(module.parameters(), module.buffers())]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]


class Ema:
    """Average of parameters and floating buffers (batch-norm statistics); other buffers are copied.

    Args:
        model: what is averaged; from now on its tensors stay where they are, and change in place.

    Attributes:
        module: a copy of the model on the same device, always in evaluation mode, without gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        # gathered once: to walk over a model takes longer than to average a small one
        self._averaged, self._copied = _tensors(self.module)
        self._floating, self._counters = _tensors(model)

    @torch.no_grad()
    def update(self, decay: Tensor) -> None:
        """Keep `decay` of the distance to the model: () float32 on its device, as `decay_at` says.

        A tensor, since a number would be baked into a captured CUDA graph.
        """
        if self._averaged:
            torch._foreach_sub_(self._averaged, self._floating)
            torch._foreach_mul_(self._averaged, decay)
            torch._foreach_add_(self._averaged, self._floating)
        if self._copied:
            torch._foreach_copy_(self._copied, self._counters)
