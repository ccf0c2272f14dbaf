"""Machine settings of a run: device, precision, counter-based random numbers, batch size, packed memory."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


def is_offline() -> bool:
    """Return True if downloads are forbidden by `--offline` or HF_HUB_OFFLINE=1."""
    from huggingface_hub import is_offline_mode  # here, because few commands need it

    # huggingface_hub reads the variable when it is imported, which may be before --offline sets it.
    return is_offline_mode() or os.environ.get("HF_HUB_OFFLINE") == "1"


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


@contextmanager
def initial_weights(seed: int, stream: str = "init") -> Iterator[None]:
    """Draw the weights of modules that are made within the block as a pure function of seed and stream."""
    # Weights are initialised on the CPU, so only its generator is saved, seeded and restored.
    # torch.manual_seed would also change the generators of the GPUs.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_seed(seed, stream))
        yield


GAMMA, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
"""The constants of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) as signed numbers."""


def mix(state: Tensor) -> Tensor:
    """SplitMix64's hash of int64, in place; different inputs have different results.

    Its n-th number from `seed` is `mix(seed + n * GAMMA)`, so numbers need no state and can be computed in
    any order. Only integers are used, so they are equal on every device.
    """
    state.bitwise_xor_(_shift(state, 30)).mul_(_FIRST)
    state.bitwise_xor_(_shift(state, 27)).mul_(_SECOND)
    return state.bitwise_xor_(_shift(state, 31))


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 to the right: PyTorch's >> copies the sign bit."""
    return (state >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def resolve_device(name: str, *, deterministic: bool = False) -> torch.device:
    """Return the device of this name, and set up this process for it.

    A GPU becomes the current one: libraries start copies, streams and events there. Its kernels are chosen,
    see `_choose_kernels`. On a CPU, freed memory is kept.

    Args:
        name: a device name of torch, or `auto`: the first GPU if there is one, otherwise the CPU.
        deterministic: use only kernels that give the same bits each time. On a CPU all do.

    Returns:
        The device, for a GPU with its number.

    Raises:
        InputError: the device does not exist on this machine, or torch cannot use it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # torch.device(name) would accept a device that the machine does not have, and leave out the number.
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device is {name!r}, which is not usable here ({first_line(error)}); try auto or cpu"
        ) from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
        _choose_kernels(deterministic)
    elif device.type == "cpu":
        _keep_freed_memory()
    return device


def _choose_kernels(deterministic: bool) -> None:
    """Set for this process which kernels a GPU uses.

    TF32 is off, so that `precision: fp32` is float32 in training, evaluation and attacks. bf16 never uses it.
    """
    # These two set torch's old switches and its new ones (`fp32_precision`) alike. If only the new ones were
    # set, the two would differ, and torch 2.11 to 2.14 raises an error when something reads an old one.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    # cuDNN measures its kernels for each new shape. There are few, because only last batches are smaller.
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch requires it
    if deterministic != torch.are_deterministic_algorithms_enabled():  # its call imports the compiler
        torch.use_deterministic_algorithms(deterministic)


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


COMPILATION_SECONDS = 60.0
"""Assumed time that torch.compile takes for a network on a GPU; it was not measured."""


@contextmanager
def capture(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> Iterator[None]:
    """Record the kernels of the block as a CUDA graph, without running them.

    If the capture fails, the current stream is again the one from before; `torch.cuda.graph` would leave its
    own. Other threads pin the memory of decoded batches meanwhile, which CUDA forbids in the mode `global`.

    Args:
        graph: an empty graph.
        stream: stream of the recording, with which the block's kernels ran before.
    """
    recording = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
    with torch.cuda.stream(stream), recording:
        yield


def release_memory() -> None:
    """Free the memory of objects that are not used any more, also on the GPUs.

    torch leaves cycles of references behind, for example to a model whose optimiser was saved. Python would
    collect them at some later time, and until then weights and CUDA graphs would stay on the GPU.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the data type of forward passes.

    A device that only emulates bf16 computes it more slowly than fp32. It gets fp32.

    Args:
        precision: fp32, bf16, or auto: bf16 on a GPU, fp32 on a CPU.
        device: device of the model.

    Raises:
        InputError: `precision` is not auto, fp32 or bf16.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise InputError(f"precision is {precision!r}; choose one of auto, fp32, bf16")
    wanted = wanted_dtype(precision, device)
    return wanted if wanted == torch.float32 or _has_bf16(device) else torch.float32


def wanted_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the data type that `precision` stands for, whether the device has it or not."""
    wanted = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if wanted else torch.float32


def _has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16: compute capability 8, AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


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


_PIXELS_ON_CPU, _PIXELS_ON_GPU = 2**21, 2**24
"""Largest number of pixels of one channel in one forward pass: 41 and 334 images of side 224. On a CPU larger
batches are no faster, and the activations of 256 such images of an EfficientNet-Lite0 take 8 GB."""


def batch_size_for(side: int, most: int, device: torch.device) -> int:
    """Number of images in one forward pass: `most`, or a smaller power of two if the images are large.

    Args:
        side: side of the images in pixels.
        most: largest number of images.
        device: device of the model.
    """
    fitting = (_PIXELS_ON_CPU if device.type == "cpu" else _PIXELS_ON_GPU) // side**2
    # A power of two divides `pseudo_label.part_size`, so that parts have whole batches.
    return most if fitting >= most else 2 ** (max(fitting, 1).bit_length() - 1)


_ALIGNMENT = 64  # bytes; torch needs a multiple of the size of each type


def packed_bytes(tensors: Iterable[Tensor]) -> int:
    """Size in bytes of a memory that holds copies of all these tensors; see `packed_views`."""
    return sum(tensor.nbytes + -tensor.nbytes % _ALIGNMENT for tensor in tensors)


def packed_views(memory: Tensor, tensors: Iterable[Tensor]) -> list[Tensor]:
    """Divide one memory among tensors: views of their types, shapes and memory formats, one after the other.

    One memory needs one allocation, which is slow if it is pinned, and one copy to another device.

    Args:
        memory: (packed_bytes,) uint8.
        tensors: tensors on any device; their values are not read.
    """
    views, start = list[Tensor](), 0
    for tensor in tensors:
        dense = torch.empty_like(tensor, device="meta")
        place = memory[start : start + tensor.nbytes].view(tensor.dtype)
        views.append(place.as_strided(dense.size(), dense.stride()))
        start += packed_bytes([tensor])
    return views
