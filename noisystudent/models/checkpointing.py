"""Gradient checkpointing: blocks are computed again in the backward pass, with the same results."""

from __future__ import annotations

from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm


class Checkpointing:
    """Gradient checkpointing of a timm model whose batch norms count each image once.

    Without this, the second computation would update their statistics a second time.

    Args:
        net: timm model; changed in place.

    Raises:
        AttributeError, AssertionError: timm cannot do this for the network.
    """

    def __init__(self, net: Any) -> None:
        net.set_grad_checkpointing(True)
        self._norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
        self._momenta = [norm.momentum for norm in self._norms]
        self._again = False
        for norm in self._norms:
            # A bound method, because deepcopy copies its object too; see `ModelNoise`.
            norm.register_forward_pre_hook(self._uncount)

    def begin(self) -> None:
        """Call it before the forward pass."""
        self._again = False
        for norm, momentum in zip(self._norms, self._momenta, strict=True):
            norm.momentum = momentum

    def end(self) -> None:
        """Call it after the forward pass: what is computed from now on is computed again."""
        self._again = True
        # The new statistics are the old ones. They cannot be left out: torch wants the same tensors in both
        # computations.
        for norm in self._norms:
            norm.momentum = 0.0

    def _uncount(self, norm: Any, _inputs: Any) -> None:
        """Forward pre-hook of a batch norm, which then counts one batch."""
        if self._again and norm.training and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.sub_(1)
