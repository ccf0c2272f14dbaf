"""Machine settings of a run: device, precision, counter-based random numbers, batch size."""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import InputError, first_line


def _key(seed: int, stream: str, counters: tuple[int, ...]) -> bytes:
    """16 bytes that depend on seed, stream and every counter; equal on all versions and machines."""
    text = f"{seed}/{stream}/" + "/".join(map(str, counters))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def generator(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """Random number generator that is a pure function of (seed, stream, counters).

    Philox is counter-based (Salmon et al., SC 2011). No state is carried from one step to the next, so the
    position of a run is one integer.

    Args:
        seed: seed of the run.
        stream: name of the use, so that different uses get independent numbers.
        *counters: position within the stream, such as the step.
    """
    key = np.frombuffer(_key(seed, stream, counters), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def torch_seed(seed: int, stream: str, *counters: int) -> int:
    """63-bit seed for torch generators; a pure function of its arguments."""
    # 63 bits, so that the seed is positive as a signed 64-bit number too.
    return int.from_bytes(_key(seed, stream, counters)[:8], "little") >> 1


def resolve_device(name: str) -> torch.device:
    """Return the device of this name. On a CPU, also set the memory allocator of this process.

    Args:
        name: a device name of torch, or `auto`: the first GPU if there is one, otherwise the CPU.

    Raises:
        InputError: the device does not exist on this machine, or torch cannot use it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)  # torch.device also accepts a device that the machine does not have
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device is {name!r}, which is not usable here ({first_line(error)}); try auto or cpu"
        ) from error
    if device.type == "cpu":
        _keep_freed_memory()
    return device


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def _keep_freed_memory() -> None:
    """Keep freed memory in this process if the C library is glibc; otherwise do nothing.

    Every forward pass allocates and frees the same activations. By default glibc returns them to the system,
    which zeroes them and maps them again page by page. This made labelling on two cores up to 1.8 times
    slower. Blocks above 1 GiB are still returned.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, -1)  # -1: never return the top of the heap


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the data type of forward passes.

    Args:
        precision: fp32, bf16, or auto: bf16 on a GPU, fp32 on a CPU.
        device: device of the model.

    Raises:
        InputError: `precision` is not auto, fp32 or bf16.
    """
    known = {"fp32": torch.float32, "bf16": torch.bfloat16}
    known["auto"] = known["bf16" if device.type == "cuda" else "fp32"]
    if precision not in known:
        raise InputError(f"precision is {precision!r}; choose one of auto, fp32, bf16")
    return known[precision]


def on_host(values: Iterable[Tensor], lag: int = 2) -> Iterator[NDArray[Any]]:
    """Each tensor as an array, in order, `lag` tensors late.

    The copies go on while the device computes, and the host waits only for a tensor that `lag` others have
    followed, so a GPU always has work.

    Args:
        values: tensors on any device. Each is drawn before an earlier one is returned.
        lag: number of tensors that are computed or copied while the host uses an array.
    """
    waiting = deque[Callable[[], NDArray[Any]]]()
    for value in values:
        waiting.append(_copy_to_host(value))
        if len(waiting) > lag:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


def _copy_to_host(value: Tensor) -> Callable[[], NDArray[Any]]:
    """Start to copy a tensor to the host; the returned function waits for the copy."""
    if not value.is_cuda:
        return value.cpu().numpy
    copied = value.to("cpu", non_blocking=True)  # PyTorch uses pinned memory for this
    end_of_copy = torch.cuda.Event()
    end_of_copy.record(torch.cuda.current_stream(value.device))

    def wait() -> NDArray[Any]:
        end_of_copy.synchronize()
        return copied.numpy()

    return wait


_PIXELS_AT_ONCE = 2**24
"""Largest number of pixels of one channel in one forward pass: 334 images of side 224."""


def batch_size_for(side: int, most: int) -> int:
    """Number of images in one forward pass: `most`, or fewer if the images are large.

    Args:
        side: side of the images in pixels.
        most: largest number of images.
    """
    return max(1, min(most, _PIXELS_AT_ONCE // side**2))
