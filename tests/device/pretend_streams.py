"""Streams and events of the pretended GPU: vector clocks that show what was not waited for (Lamport 1978)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

HARNESS = "/tests/device/pretend_"


class Fault(AssertionError):
    """What a GPU would refuse, wait for or compute wrongly; no RuntimeError, which the package may handle."""


def place() -> str:
    """File and line of the innermost call that is neither PyTorch's nor this harness's."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if "/lib/python" not in name and HARNESS not in name and not name.startswith("<"):
            break
        frame = frame.f_back
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-2:])}:{frame.f_lineno}"


class Clock:
    """The host or a stream, which work in order. `known` is the work that is certain to have ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.known: dict[Clock, int] = {}

    def tick(self) -> int:
        self.count += 1
        self.known[self] = self.count
        return self.count

    def learn(self, moment: dict[Clock, int]) -> None:
        for clock, count in moment.items():
            self.known[clock] = max(count, self.known.get(clock, 0))

    def knows(self, moment: tuple[Clock, int]) -> bool:
        return self.known.get(moment[0], 0) >= moment[1]


class Stream(Clock):
    """In place of torch.cuda.Stream."""

    host: Clock

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device = numbered(torch.device("cuda" if device is None else device))
        super().__init__(f"a side stream of {self.device}")
        every.add(self)

    @property
    def cuda_stream(self) -> int:
        """In place of the address that other libraries are given."""
        return id(self)

    def wait_stream(self, other: Stream) -> None:
        self.learn(other.known)

    def wait_event(self, event: Event) -> None:
        self.learn(event.moment)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return self.host.knows((self, self.count))

    def __enter__(self) -> Stream:
        self._context = _StreamContext(self)
        self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)


class _Current(threading.local):
    """Current device of a thread, and its current stream of each device."""

    def __init__(self) -> None:
        self.device = 0
        self.streams = dict(enumerate(defaults))


every: WeakSet[Stream] = WeakSet()
defaults: list[Stream] = []
current = _Current()


def numbered(device: torch.device) -> torch.device:
    """The device with its number; without one it is the current device."""
    number: int | None = device.index  # None for "cuda", whatever its type says
    return torch.device("cuda", current.device if number is None else number)


def current_stream(device: Any = None) -> Stream:
    """In place of torch.cuda.current_stream."""
    if isinstance(device, int):
        return current.streams[device]
    return current.streams[numbered(torch.device("cuda" if device is None else device)).index]


class Event:
    """In place of torch.cuda.Event. An event that was not recorded waits for nothing, as on a GPU."""

    def __init__(self, *_: object, **__: object) -> None:
        self.moment: dict[Clock, int] = {}

    def record(self, stream: Stream | None = None) -> None:
        self.moment = dict((stream or current_stream()).known)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).learn(self.moment)

    def synchronize(self) -> None:
        Stream.host.learn(self.moment)

    def query(self) -> bool:
        """True only if the host has waited: a GPU may be as slow as this."""
        return all(Stream.host.knows(moment) for moment in self.moment.items())

    def elapsed_time(self, _: Event) -> float:
        return 1.0


class _StreamContext:
    """In place of torch.cuda.stream: the stream and its device are current inside."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        if self._stream is not None:
            index = self._stream.device.index
            self._before = current.device, index, current.streams[index]
            current.device, current.streams[index] = index, self._stream

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            current.device, index, current.streams[index] = self._before


stream_context = _StreamContext


def begin(devices: int) -> None:
    """Start with a host and one default stream for each device."""
    Stream.host = Clock("the host")
    defaults[:] = [Stream(torch.device("cuda", index)) for index in range(devices)]
    for stream in defaults:
        stream.name = f"the default stream of {stream.device}"
    current.__init__()  # type: ignore[misc]


def storage(tensor: Tensor) -> Any:
    """Storage of a tensor. Python attributes live as long as its memory: place, pinned, written, read."""
    return tensor.untyped_storage()


def launch(clock: Clock, reads: Iterable[Tensor], writes: Iterable[Tensor], what: str) -> None:
    """Check that all that this work needs has ended, and note what it reads and writes.

    Args:
        clock: the stream that works, or the host.
        reads, writes: tensors on any device.
        what: name of the work.
    """
    if clock is not Stream.host:
        clock.learn(Stream.host.known)  # work starts after its launch
    now = clock, clock.tick()
    for tensor in reads:
        memory = storage(tensor)
        _check(clock, [getattr(memory, "written", None)], f"{what} reads what", "writes", tensor)
        memory.__dict__.setdefault("read", {})[clock] = now[1]
    for tensor in writes:
        memory = storage(tensor)
        before = [getattr(memory, "written", None), *getattr(memory, "read", {}).items()]
        _check(clock, before, f"{what} overwrites what", "uses", tensor)
        memory.written, memory.read = now, {}


def _check(clock: Clock, moments: Iterable[Any], what: str, does: str, tensor: Tensor) -> None:
    for moment in moments:
        if moment is not None and not clock.knows(moment):
            raise Fault(
                f"{what} {moment[0].name} still {does}, and {clock.name} has not waited for it:"
                f" {tuple(tensor.shape)} {tensor.dtype} at {place()}"
            )
