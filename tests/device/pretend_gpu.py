"""Operations and copies of the pretended GPU: they compute on the CPU, under the rules of a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pretend_graph import CUDAGraph, capturing, is_view, refuse_in_capture, tensors_of, written
from pretend_recording import Recording
from pretend_streams import Clock, Fault, Stream, current_stream, launch, numbered, place, storage
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

STAGED = 2**16  # bytes of unpinned memory that the driver copies without waiting

# Operations whose result has a size or a number that the host must know.
SYNCHRONISING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "argwhere", "histc",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}

_real_to, _real_numpy = Tensor.to, Tensor.numpy


def _bytes(tensor: Tensor) -> bytes:
    with _disable_current_modes():
        return _real_numpy(tensor.contiguous()).tobytes()


def device_of(tensor: Tensor) -> torch.device:
    """Device on which a tensor says it is."""
    real: torch.device = torch._C.TensorBase.device.__get__(tensor)
    return getattr(storage(tensor), "place", None) or real if real.type == "cpu" else real


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """Say that the memory of a tensor is on this device."""
    if device.type == "cuda":
        storage(tensor).place = numbered(device)
    return tensor


_HOST = torch.device("cpu")


def numbered_or_host(device: torch.device) -> torch.device:
    return numbered(device) if device.type == "cuda" else device


class Gpu(TorchDispatchMode):
    """Sees every operation, also of autograd and of optimisers.

    Attributes:
        quiet: True: the host may not wait.
        recording: compares the operations of a step with those of earlier steps; None outside of a step.
        kernels: number of operations that a GPU would have launched.
    """

    def __init__(self) -> None:
        super().__init__()
        self.quiet = False
        self.recording: Recording | None = None
        self.kernels = 0
        self._last = _HOST  # device of the last operation
        self._in_flight: list[tuple[Tensor, bytes, tuple[Clock, int], str]] = []  # copies of pinned memory

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let torch.compile trace models although this mode is active."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name.removeprefix("aten::")
        tensors = list(tensors_of(*args, *kwargs.values()))
        target, pinned = kwargs.get("device"), kwargs.pop("pin_memory", None)
        if target is not None:
            kwargs["device"] = target if target.type == "meta" else torch.device("cpu")
        on_gpu = [tensor for tensor in tensors if tensor.is_cuda]
        if name == "copy_" and len(on_gpu) == 1:
            return self._copy(func, args, kwargs)
        if target is None or (on_gpu and name == "_to_copy"):  # `move` makes the copies to other devices
            target = device_of(on_gpu[0]) if on_gpu else _HOST
        if len(on_gpu) == len(tensors) and torch._C._current_graph_task_id() >= 0:
            target = self._last  # autograd's C++ code takes the device from the memory
        if target.type == "cuda":
            return self._device_works(func, args, kwargs, (tensors, numbered_or_host(target)))
        if not is_view(func):
            changed = {id(tensor) for tensor in written(func, args, kwargs)}
            reads = [one for one in tensors if hasattr(storage(one), "written") and id(one) not in changed]
            launch(Stream.host, reads, [], f"the host ({name})")
        out = func(*args, **kwargs)
        if pinned:
            storage(out).pinned = True
        return out

    def _device_works(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        found: tuple[list[Tensor], torch.device],
    ) -> Any:
        tensors, device = found
        self._last = device
        name, changed = func._schema.name.removeprefix("aten::"), written(func, args, kwargs)
        self._refuse_mixed(args, tensors, changed, name)
        tape = CUDAGraph.recording
        if not is_view(func):
            self._refuse_waiting(args, kwargs, name)
            self.kernels += 1
            if self.recording is not None:
                self.recording.see(func, args, kwargs)
            if tape is None:
                on_gpu = [tensor for tensor in tensors if tensor.is_cuda]
                launch(current_stream(device), on_gpu, changed, name)
            elif device != tape.stream.device:
                raise Fault(f"{name} on {device} while {tape.stream.device} captures, at {place()}")
        out = func(*args, **kwargs) if tape is None else tape.run(func, args, kwargs)
        fresh = [tensor for tensor in tensors_of(out) if not tensor.is_cuda]
        for tensor in fresh:
            put(tensor, device)
        if tape is None:
            launch(current_stream(device), [], fresh, name)
        if self.recording is not None:
            self.recording.made(out)
        return out

    def _refuse_mixed(
        self, args: tuple[Any, ...], tensors: list[Tensor], changed: list[Tensor], name: str
    ) -> None:
        """A kernel takes tensors of one device, and numbers of the host."""
        numbers = [tensor for tensor in tensors if not tensor.is_cuda and tensor.dim() == 0]
        indices = list(tensors_of(args[1])) if name in INDEXING else []
        ids = {id(one) for one in [*indices, *numbers]} - {id(one) for one in changed}
        devices = {str(device_of(tensor)) for tensor in tensors if id(tensor) not in ids}
        if len(devices) > 1:
            shapes = [(str(device_of(tensor)), tuple(tensor.shape)) for tensor in tensors]
            raise Fault(f"expected all tensors on the same device: {name} of {shapes} at {place()}")
        if any(not index.is_cuda for index in indices):
            self.wait(f"{name} with an index on the host", current_stream(self._last))

    def _refuse_waiting(self, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> None:
        stream = current_stream(self._last)
        if name in SYNCHRONISING:
            self.wait("item" if name == "_local_scalar_dense" else name, stream)
        if name in INDEXING and any(one.dtype in (torch.bool, torch.uint8) for one in tensors_of(args[1])):
            self.wait(f"{name} with a mask", stream)
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.wait(f"{name} without an output size", stream)
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch._C.Generator) and (capturing() or self.recording is not None):
                raise Fault(f"{name} draws from a generator that no graph has registered, at {place()}")

    def wait(self, what: str, *streams: Stream) -> None:
        """The host waits for the work of streams, or may not."""
        refuse_in_capture(f"the host waits ({what})")
        if self.quiet:
            raise Fault(f"the host waits for the device: {what} at {place()}")
        for stream in streams:
            Stream.host.learn(stream.known)
        self.check_pinned()

    # Copies between host and device.

    def to_device(self, source: Tensor, device: torch.device, non_blocking: bool) -> tuple[Clock, int]:
        """Account for a copy to the device; return the moment at which it is done."""
        stream, pinned = current_stream(device), bool(getattr(storage(source), "pinned", False))
        size = source.numel() * source.element_size()
        refuse_in_capture("a copy from the host")
        kind = f"{'' if pinned else 'un'}pinned copy of {size} bytes to the device"
        if not non_blocking:
            self.wait(f"blocking {kind}", stream)
        elif not pinned and size > STAGED:
            self.wait(kind, stream)
        launch(stream, [source], [], kind)
        moment = stream, stream.count
        if not non_blocking:
            Stream.host.learn(stream.known)
        if pinned and non_blocking:
            self.check_pinned()
            self._in_flight.append((source, _bytes(source), moment, place()))
        return moment

    def to_host(self, source: Tensor, non_blocking: bool) -> tuple[Clock, int]:
        """Account for a copy to the host; return the moment at which it is done."""
        stream = current_stream(device_of(source))
        if not non_blocking:
            self.wait(f"blocking copy of {tuple(source.shape)} to the host", stream)
        refuse_in_capture("a copy to the host")
        launch(stream, [source], [], "a copy to the host")
        if not non_blocking:
            Stream.host.learn(stream.known)
        return stream, stream.count

    def check_pinned(self) -> None:
        """Check that no pinned memory has changed before it was copied."""
        copies, self._in_flight = self._in_flight, []
        for source, before, moment, where in copies:
            if _bytes(source) != before:
                raise Fault(f"pinned memory was overwritten before its copy to the device had ended: {where}")
            if not Stream.host.knows(moment):
                self._in_flight.append((source, before, moment, where))

    def _copy(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Tensor.copy_ from one device to another."""
        target, source = args[:2]
        non_blocking = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        if target.is_cuda:
            self.to_device(source, device_of(target), non_blocking)
            launch(current_stream(device_of(target)), [], [target], "copy_")
        else:
            storage(target).written = self.to_host(source, non_blocking)
        return func(*args, **kwargs)

    def move(self, tensor: Tensor, device: torch.device, arguments: dict[str, Any]) -> Tensor:
        """Tensor.to for another device."""
        non_blocking = bool(arguments.pop("non_blocking", False))
        arguments["copy"] = True
        moment = (
            self.to_device(tensor, device, non_blocking)
            if device.type == "cuda"
            else self.to_host(tensor, non_blocking)
        )
        with _disable_current_modes():
            out = _real_to(tensor, **arguments)
        memory = storage(out)
        memory.place = device if device.type == "cuda" else None
        memory.written, memory.pinned = moment, device.type == "cpu" and non_blocking
        return out

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Within: the host may not wait."""
        before, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = before
