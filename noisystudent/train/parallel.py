"""A training that several processes share: gradients, the statistics of batch norm, and sharded weights.

Each process has a part of every batch. The losses of the parts sum to the loss of the batch, so the gradients
of the batch are the sum of theirs, whatever the sizes of the parts are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from noisystudent.distributed import Group, group


class _Total(torch.autograd.Function):
    """The sum of a tensor over all processes, through which gradients flow back to each of them."""

    @staticmethod
    def forward(ctx: Any, everyone: Group, part: Tensor) -> Tensor:
        ctx.everyone = everyone
        result = part.clone()
        everyone.sum(result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        result = grad.clone()
        ctx.everyone.sum(result)
        return None, result


def total(part: Tensor) -> Tensor:
    """The sum of a tensor over all processes. A loss of it must be divided by their number."""
    result: Tensor = _Total.apply(group(), part)
    return result


class _Normalize(torch.autograd.Function):
    """Batch norm by statistics of all processes, which depend on the images of each."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, norm: _BatchNorm, weight: Tensor | None, bias: Tensor | None, *stats: Tensor
    ) -> Tensor:
        mean, var, count = stats
        ctx.save_for_backward(images, weight, mean, (var + norm.eps).rsqrt(), count)
        return F.batch_norm(images, mean, var, weight, bias, training=False, eps=norm.eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, scale, count = ctx.saved_tensors
        dims, shape = _channels(images)
        normal = (images - mean.view(shape)) * scale.view(shape)
        grad_in = grad.to(normal.dtype)
        own = torch.stack([grad_in.sum(dims), (grad_in * normal).sum(dims)])  # of bias and weight
        means = own.clone()
        group().sum(means)
        means /= count
        grad_in = grad_in - means[0].view(shape) - normal * means[1].view(shape)
        factor = scale if weight is None else scale * weight
        of_bias, of_weight = (None, None) if weight is None else own
        return (grad_in * factor.view(shape)).to(images.dtype), None, of_weight, of_bias, None, None, None


def _channels(images: Tensor) -> tuple[list[int], list[int]]:
    """Dimensions that statistics of images (B, C, …) are over, and the shape of (C,) beside them."""
    dims = [0, *range(2, images.ndim)]
    return dims, [1, -1, *[1] * (images.ndim - 2)]


def _synchronized(norm: _BatchNorm, images: Tensor) -> Tensor:
    """Forward pass of a batch norm, over the images of all processes in training."""
    if not norm.training:
        result: Tensor = type(norm).forward(norm, images)
        return result
    dims, _ = _channels(images)
    with torch.no_grad():
        wide = images.to(norm.weight.dtype if norm.affine else torch.float32)
        var, mean = torch.var_mean(wide, dims, correction=0)
        count = mean.new_full((1,), images.numel() // images.shape[1])
        parts = group().stack(torch.cat([count, mean, var]))  # (processes, 1 + 2 C)
        counts, (means, variances) = parts[:, :1], parts[:, 1:].chunk(2, dim=1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        var = (counts * (variances + (means - mean).square())).sum(0) / count
        _count_batch(norm, mean, var * count / (count - 1))
    result = _Normalize.apply(images, norm, norm.weight, norm.bias, mean, var, count)
    for child in norm.children():  # batch norms of timm have a dropout and an activation
        result = child(result)
    return result


def _count_batch(norm: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    """Add the statistics of a batch to the running ones, as torch does; `var` is unbiased."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    factor = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), factor)
    norm.running_var.lerp_(var.to(norm.running_var.dtype), factor)


def synchronize_batchnorm(model: nn.Module) -> None:
    """Let the batch norms of a model see the images of all processes in training.

    torch's own SyncBatchNorm has the same statistics, but it works on GPUs alone, and replaces modules.
    """
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            # A bound method, because deepcopy copies its object too.
            norm.forward = MethodType(_synchronized, norm)  # type: ignore[method-assign]


def batchnorm_buffers(model: nn.Module) -> list[Tensor]:
    """The running statistics of a model. Unless they are synchronised, those of process 0 count."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers()]


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated parts of a network: what is in its outermost lists and sequences of modules."""
    for child in module.children():
        listed = isinstance(module, nn.Sequential | nn.ModuleList)
        if listed and not isinstance(child, nn.Sequential | nn.ModuleList):
            yield child
        else:
            yield from _units(child)


def shard(model: nn.Module) -> None:
    """Divide the parameters of a model among all processes (FSDP2); a block is whole while it is computed."""
    # torch would move a model from the CPU to a GPU if there is one.
    mesh = init_device_mesh(next(model.parameters()).device.type, (group().size,))
    for unit in _units(model):
        if any(True for _ in unit.parameters()):
            fully_shard(unit, mesh=mesh)
    # Also after a forward pass without a backward pass, so that the optimiser's changes are seen.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, in every process; any other tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The shard that this process has of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def on_host(model: nn.Module) -> nn.Module:
    """A copy of a model on the CPU, which `assemble` fills after the model was sharded."""
    return copy.deepcopy(model).cpu()


def assemble(whole: nn.Module, sharded: nn.Module) -> nn.Module:
    """Fill a copy of a sharded model with all of its weights, and return it on the device of the model."""
    device, shards = next(sharded.parameters()).device, sharded.state_dict()
    for name, place in whole.state_dict().items():  # one after the other, without a second copy of all
        place.copy_(full(shards[name]))
    return whole.to(device)


def gradients(model: nn.Module) -> list[Tensor]:
    """The gradients of a model, in the order of its parameters."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
