"""CUDA graphs of the pretended GPU: a tape that repeats operations with the numbers and memory they had."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pretend_streams import Fault, Stream, current_stream, launch, place, storage, stream_context
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

# Batch norm changes its statistics in place, which the schema of the operation does not say.
_HIDDEN = ("running_mean", "running_var")


def tensors_of(*values: Any) -> Iterator[Tensor]:
    """Tensors among the values, also in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_of(*value)


def is_view(func: Any) -> bool:
    """True if the result only shares memory, so no kernel runs."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Arguments that an operation changes in place."""
    found: list[Tensor] = []
    for number, argument in enumerate(func._schema.arguments):
        hidden = argument.name in _HIDDEN and "batch_norm" in func._schema.name
        if hidden or (argument.alias_info is not None and argument.alias_info.is_write):
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            found.extend(tensors_of(value))
    return found


def _kept(value: Any, result: bool = False) -> Any:
    """What a tape keeps of an argument or a result: the same memory, or the numbers of a host tensor.

    Not the tensor itself: autograd takes a gradient over only if nothing else refers to it.
    """
    if isinstance(value, Tensor):
        return value.detach() if result or value.is_cuda else value.clone()
    if isinstance(value, list | tuple):
        return type(value)(_kept(one, result) for one in value)
    return value


class Tape:
    """What was recorded.

    Attributes:
        ops: (operation, arguments, keywords, result) in their order.
        broken: reason why the capture cannot end, as cudaStreamEndCapture would say.
    """

    def __init__(self, stream: Stream, mode: str) -> None:
        self.stream, self.mode = stream, mode
        self.ops: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.broken: str | None = None
        self._own: list[Any] = []  # storages; held, so that no address is used twice
        self._own_ids: set[int] = set()
        self._before: dict[int, tuple[Any, Any]] = {}
        self.outside: dict[
            int, tuple[Tensor, str]
        ] = {}  # memory that the graph does not own, and who reads it

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation and record it; memory that is not the graph's gets its values back at the end."""
        for tensor in tensors_of(*args, *kwargs.values()):
            if tensor.is_cuda and id(storage(tensor)) not in self._own_ids:
                self.outside.setdefault(id(storage(tensor)), (tensor.detach(), f"{func} at {place()}"))
        for tensor in written(func, args, kwargs):
            memory = storage(tensor)
            if id(memory) not in self._own_ids:
                self._before.setdefault(id(memory), (memory, memory.clone()))
        out = func(*args, **kwargs)
        for tensor in tensors_of(out):
            memory = storage(tensor)
            if id(memory) not in self.outside and id(memory) not in self._own_ids:
                self._own.append(memory)
                self._own_ids.add(id(memory))
        if not is_view(func):
            kept = {name: _kept(value) for name, value in kwargs.items()}
            self.ops.append((func, tuple(map(_kept, args)), kept, _kept(out, result=True)))
        return out

    def end(self) -> None:
        """A capture runs nothing: undo what the operations did."""
        with _disable_current_modes():
            for memory, before in self._before.values():
                memory.copy_(before)

    def replay(self) -> None:
        stream = current_stream(self.stream.device)
        changed = set(self._before)
        outside = [tensor for tensor, _ in self.outside.values()]
        writes = [tensor for tensor in outside if id(storage(tensor)) in changed]
        launch(stream, outside, writes, "a replay")
        with _disable_current_modes(), torch.inference_mode():
            for func, args, kwargs, out in self.ops:
                for new, old in zip(tensors_of(func(*args, **kwargs)), tensors_of(out), strict=True):
                    if new.data_ptr() != old.data_ptr():
                        old.copy_(new)

    def unchanged(self, since: int) -> list[str]:
        """Memory outside of the graph that nothing has written after a count of the stream."""
        return [
            f"{tuple(tensor.shape)} {tensor.dtype} of {reader}"
            for key, (tensor, reader) in self.outside.items()
            if key not in self._before and getattr(storage(tensor), "written", (None, 0))[1] <= since
        ]


class CUDAGraph:
    """In place of torch.cuda.CUDAGraph."""

    recording: Tape | None = None
    made: list[CUDAGraph]  # all graphs since the start of the test
    other_threads_pin = False
    pool_id = (0, 1)

    def __init__(self, keep_graph: bool = False) -> None:
        self.tape: Tape | None = None
        self.replays: list[int] = []  # count of the stream before each replay
        self.generators: list[object] = []
        CUDAGraph.made.append(self)

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global", **_: object) -> None:
        self.tape = CUDAGraph.recording = Tape(current_stream(), capture_error_mode)

    def capture_end(self) -> None:
        tape = CUDAGraph.recording
        assert tape is not None
        CUDAGraph.recording = None
        tape.end()
        if tape.mode == "global" and CUDAGraph.other_threads_pin:
            tape.broken = "another thread allocated pinned memory"
        if tape.broken:
            raise RuntimeError(
                f"CUDA error: operation failed due to a previous error during capture ({tape.broken})"
            )

    def register_generator_state(self, generator: object) -> None:
        self.generators.append(generator)

    def replay(self) -> None:
        assert self.tape is not None
        self.replays.append(current_stream(self.tape.stream.device).count)
        self.tape.replay()

    def reset(self) -> None:
        self.tape = None

    def pool(self) -> tuple[int, int]:
        return self.pool_id


class graph:
    """In place of torch.cuda.graph, in its order: after a failed capture its stream stays current."""

    capture_stream: Stream | None = None

    def __init__(
        self, cuda_graph: CUDAGraph, pool: object = None, stream: Stream | None = None,
        capture_error_mode: str = "global", **_: object,
    ) -> None:  # fmt: skip
        if stream is None and graph.capture_stream is None:
            graph.capture_stream = Stream()
        self._graph, self._mode = cuda_graph, capture_error_mode
        self._context = stream_context(stream or graph.capture_stream)

    def __enter__(self) -> None:
        torch.cuda.synchronize()
        self._context.__enter__()
        self._graph.capture_begin(capture_error_mode=self._mode)

    def __exit__(self, *error: object) -> None:
        self._graph.capture_end()
        self._context.__exit__(*error)


def capturing() -> bool:
    return CUDAGraph.recording is not None


def refuse_in_capture(what: str) -> None:
    """Raise if a graph is being captured."""
    if capturing():
        raise Fault(f"{what} while a CUDA graph is captured, at {place()}")
