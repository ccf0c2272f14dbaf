"""Copies from the host to a GPU, for which neither of the two waits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from noisystudent.runtime import packed_bytes, packed_views


def upload(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Move tensors to a device. Those on the host are moved to a GPU in one copy from pinned memory."""
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    here = [tensor for tensor in tensors if not tensor.is_cuda]
    if not here:
        return list(tensors)
    pinned = torch.empty(packed_bytes(here), dtype=torch.uint8, pin_memory=True)
    for view, tensor in zip(packed_views(pinned, here), here, strict=True):
        view.copy_(tensor)
    moved = iter(packed_views(send(pinned, device), here))
    return [tensor if tensor.is_cuda else next(moved) for tensor in tensors]


def send(pinned: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor in pinned memory to a GPU, while the GPU still computes earlier steps."""
    # On the main stream the copy would wait for all steps that are launched, and the next step for the copy.
    side, main = _copies(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(side):
        moved = pinned.to(device, non_blocking=True)
    main.wait_stream(side)
    moved.record_stream(main)  # its memory is not used again before the main stream has read it
    return moved


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The stream for copies to this device."""
    return torch.cuda.Stream(device)
