"""`torch.cuda` and the device of tensors, as programs see them where there are two GPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pretend_streams
import pytest
import torch
from pretend_gpu import Gpu, device_of, numbered_or_host
from pretend_graph import CUDAGraph, capturing, graph, refuse_in_capture
from pretend_streams import (
    Event,
    Stream,
    current,
    current_stream,
    launch,
    numbered,
    storage,
    stream_context,
)
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

DEVICES = 2
_MEMORY = (70 * 2**30, 80 * 2**30)


@contextmanager
def pretended(patch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """Within: tensors can be on cuda:0 and cuda:1."""
    pretend_streams.begin(DEVICES)
    CUDAGraph.made, CUDAGraph.recording, CUDAGraph.other_threads_pin, graph.capture_stream = (
        [],
        None,
        False,
        None,
    )
    gpu = Gpu()
    _patch_moves(patch, gpu)
    _patch_attributes(patch, gpu)
    _patch_functions(patch)
    _patch_cuda(patch, gpu)
    with gpu:
        yield gpu
        gpu.check_pinned()


def _patch_moves(patch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    """Methods of tensors that move them or copy their memory, in all threads."""
    real_to, real_clone = Tensor.to, torch.UntypedStorage.clone

    def to(self: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        options = {key: device_like(value) for key, value in kwargs.items()}
        parsed: tuple[Any, ...] = torch._C._nn._parse_to(*map(device_like, args), **options)
        device, dtype, non_blocking, layout = parsed
        given: dict[str, Any] = {"dtype": dtype, "memory_format": layout, "copy": copy or None}
        given = {key: value for key, value in given.items() if value is not None}
        if device is not None and numbered_or_host(device) != self.device:
            return gpu.move(self, numbered_or_host(device), given | {"non_blocking": non_blocking})
        return real_to(self, **given) if given.keys() - {"dtype"} or dtype not in (None, self.dtype) else self

    def cuda(self: Tensor, device: Any = "cuda", non_blocking: bool = False) -> Tensor:
        return to(self, device, non_blocking=non_blocking)

    def pin_memory(self: Tensor, device: object = None) -> Tensor:
        CUDAGraph.other_threads_pin |= threading.current_thread() is not threading.main_thread()
        copy = self.clone()
        storage(copy).pinned = True
        return copy

    def clone_storage(self: Any) -> Any:
        with _disable_current_modes():
            copy = real_clone(self)
        copy.place = getattr(self, "place", None)
        return copy

    patch.setattr(Tensor, "to", to)
    patch.setattr(Tensor, "cpu", lambda self, memory_format=None: to(self, "cpu"))
    patch.setattr(Tensor, "cuda", cuda)
    patch.setattr(Tensor, "pin_memory", pin_memory)
    patch.setattr(Tensor, "is_pinned", lambda self: bool(getattr(storage(self), "pinned", False)))
    patch.setattr(torch.UntypedStorage, "clone", clone_storage)


def _patch_attributes(patch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    """The device of tensors, and methods that read or write values on the host, in all threads."""
    real_numpy, real_tolist, real_set = Tensor.numpy, Tensor.tolist, Tensor.__setitem__

    def to_numpy(self: Tensor, **options: Any) -> Any:
        if device_of(self).type == "cuda":
            raise TypeError(f"can't convert {self.device} device type tensor to numpy; use Tensor.cpu()")
        if getattr(storage(self), "written", None) is not None:
            launch(Stream.host, [self], [], "the host (numpy)")
        return real_numpy(self, **options)

    def to_list(self: Tensor) -> Any:
        if self.is_cuda:
            gpu.wait("tolist", current_stream(self.device))
        return real_tolist(self)

    def set_item(self: Tensor, index: Any, value: Any) -> None:
        if self.is_cuda and isinstance(value, int | float):  # PyTorch fills a number in on the device
            value = torch.full((), value, dtype=self.dtype, device=self.device)
        real_set(self, index, value)

    patch.setattr(Tensor, "device", property(device_of))
    patch.setattr(Tensor, "is_cuda", property(lambda self: device_of(self).type == "cuda"))
    patch.setattr(Tensor, "is_cpu", property(lambda self: device_of(self).type == "cpu"))
    patch.setattr(Tensor, "get_device", lambda self: -1 if self.device.index is None else self.device.index)
    patch.setattr(Tensor, "numpy", to_numpy)
    patch.setattr(Tensor, "tolist", to_list)
    patch.setattr(Tensor, "record_stream", lambda self, stream: None)  # memory is never used twice here
    patch.setattr(Tensor, "__setitem__", set_item)


def device_like(value: Any) -> Any:
    """A number as a device means a GPU."""
    return torch.device("cuda", value) if type(value) is int else value


def _patch_functions(patch: pytest.MonkeyPatch) -> None:
    """Functions of PyTorch that look at the device in C++."""
    for name in ("tensor", "as_tensor", "asarray"):
        patch.setattr(torch, name, _moving(getattr(torch, name)))
    real_one_hot, real_group = torch.nn.functional.one_hot, torch._C._group_tensors_by_device_and_dtype

    def one_hot(labels: Tensor, num_classes: int = -1) -> Tensor:
        if not labels.is_cuda or num_classes < 0:
            return real_one_hot(labels, num_classes)
        zeros = torch.zeros((*labels.shape, num_classes), dtype=torch.int64, device=labels.device)
        return zeros.scatter_(-1, labels.unsqueeze(-1), 1)  # as the CUDA form does

    def group(lists: Any, with_indices: bool = False) -> Any:
        found = real_group(lists, with_indices)
        device = next(tensor.device for part in lists for tensor in part if tensor is not None)
        return {(device, dtype): group for (_, dtype), group in found.items()}

    class Generator(torch.Generator):
        """A generator of a pretended GPU draws what that of the CPU draws."""

        def __new__(cls, device: Any = "cpu") -> Any:
            return super().__new__(cls, "cpu")  # type: ignore[call-arg]

    class autocast(torch.autocast):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    patch.setattr(torch.nn.functional, "one_hot", one_hot)
    patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", group)
    patch.setattr(torch, "Generator", Generator)
    patch.setattr(torch, "autocast", autocast)
    patch.setattr(torch, "compile", lambda function, **_: function)
    patch.setattr(torch.compiler, "reset", lambda: None)


def _moving(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function makes a tensor on the CPU; it is then copied to the device, which blocks."""

    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        out = function(data, **options) if device is None else function(data, device="cpu", **options)
        return out if device is None else out.to(device)

    return made


def _index(device: Any) -> int:
    """Number of a device; None is the current one."""
    if device is None:
        return current.device
    return device if isinstance(device, int) else int(numbered(torch.device(device)).index)


def _set_device(device: Any) -> None:
    current.device = _index(device)


def _set_stream(stream: Stream) -> None:
    current.device, current.streams[stream.device.index] = stream.device.index, stream


@contextmanager
def _device(device: Any) -> Iterator[None]:
    before, current.device = current.device, _index(device)
    yield
    current.device = before


_PROPERTIES = SimpleNamespace(
    name="Pretended GPU", major=9, minor=0, multi_processor_count=132, total_memory=_MEMORY[1],
    L2_cache_size=50 << 20,
)  # fmt: skip
_CUDA: dict[str, object] = {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "device_count": lambda: DEVICES,
    "current_device": lambda: current.device,
    "set_device": _set_device,
    "device": _device,
    "Stream": Stream,
    "Event": Event,
    "stream": stream_context,
    "set_stream": _set_stream,
    "current_stream": current_stream,
    "default_stream": lambda device=None: pretend_streams.defaults[_index(device)],
    "CUDAGraph": CUDAGraph,
    "graph": graph,
    "graph_pool_handle": lambda: (0, 1),
    "is_current_stream_capturing": capturing,
    "mem_get_info": lambda _=None: _MEMORY,
    "memory_allocated": lambda _=None: 0,
    "max_memory_allocated": lambda _=None: 0,
    "memory_reserved": lambda _=None: 0,
    "max_memory_reserved": lambda _=None: 0,
    "reset_peak_memory_stats": lambda _=None: None,
    "empty_cache": lambda: refuse_in_capture("empty_cache"),
    "get_device_name": lambda _=None: _PROPERTIES.name,
    "get_device_capability": lambda _=None: (9, 0),
    "get_device_properties": lambda _=None: _PROPERTIES,
    "is_bf16_supported": lambda including_emulation=True: True,
    "get_rng_state": lambda _=None: torch.get_rng_state(),
    "set_rng_state": lambda state, _=None: None,
    "manual_seed": lambda _: None,
    "manual_seed_all": lambda _: None,
}


def _patch_cuda(patch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    """Names of torch.cuda and torch.accelerator."""

    def synchronize(device: Any = None) -> None:
        streams = [stream for stream in pretend_streams.every if stream.device.index == _index(device)]
        gpu.wait("synchronize", *streams)

    for name, value in (_CUDA | {"synchronize": synchronize}).items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(Stream, "synchronize", lambda self: gpu.wait("synchronize", self), raising=False)
    stream = SimpleNamespace(is_capturing=capturing)
    patch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda")
    )
    patch.setattr(torch.accelerator, "current_stream", lambda device=None: stream)
