"""Exponential moving average of a model: these weights are evaluated and become the next teacher."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from noisystudent.train.parallel import local


def decay_at(step: int, decay: float) -> float:
    """Decay of update t = `step` = 0, 1, …: min(decay, (1+t)/(10+t)), TensorFlow's `num_updates` warm-up."""
    return min(decay, (1 + step) / (10 + step))


def _pairs(average: nn.Module, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Trained parameters and buffers of a copy of a model, each with that of the model.

    Of sharded ones, which are sharded alike, the shards of this process.
    """
    parameters = zip(average.parameters(), model.parameters(), strict=True)
    trained = [pair for pair in parameters if pair[1].requires_grad]  # frozen ones stay equal
    pairs = chain(trained, zip(average.buffers(), model.buffers(), strict=True))
    return [(local(one.detach()), local(other.detach())) for one, other in pairs]


def averaged_copy(model: nn.Module) -> nn.Module:
    """Copy of a model whose weights become its moving average: in evaluation mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


class Ema:
    """Moving average of the trained parameters and floating-point buffers of a model; others are copied.

    Args:
        model: model to average. From now on its tensors must keep their memory and change in place.
        module: result of `averaged_copy`, if it was sharded as the model. None: it is made here.

    Attributes:
        module: copy of the model with the averaged weights, on the same device, always in evaluation mode and
            without gradients.
    """

    def __init__(self, model: nn.Module, module: nn.Module | None = None) -> None:
        self.module = averaged_copy(model) if module is None else module
        # The lists are made once, because iterating over a small model takes longer than averaging it.
        pairs = _pairs(self.module, model)
        floating = [pair for pair in pairs if pair[1].is_floating_point()]
        others = [pair for pair in pairs if not pair[1].is_floating_point()]  # such as batch-norm counters
        self._averaged, self._floating = ([pair[at] for pair in floating] for at in (0, 1))
        self._copied, self._counters = ([pair[at] for pair in others] for at in (0, 1))

    @torch.no_grad()
    def update(self, decay: Tensor) -> None:
        """Update the average: average = model + decay · (average - model).

        Args:
            decay: () float32 on the device of the model, filled with `decay_at`. It is a tensor, because a
                captured CUDA graph would keep the first value of a number.
        """
        if self._averaged:  # torch._foreach_ functions do not accept empty lists
            torch._foreach_sub_(self._averaged, self._floating)
            torch._foreach_mul_(self._averaged, decay)
            torch._foreach_add_(self._averaged, self._floating)
        if self._copied:  # counters cannot be averaged
            torch._foreach_copy_(self._copied, self._counters)

    def norms(self) -> Tensor:
        """Euclidean norms of the weights and of their average, (2,) float32 on the device of the model.

        A norm is finite only if every trained parameter and floating-point buffer is. The host does not wait.
        Of sharded weights these are the norms of the shards of this process.
        """
        return torch.stack([get_total_norm(self._floating), get_total_norm(self._averaged)])
