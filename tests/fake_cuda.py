"""The rules of CUDA for streams and captures, without a GPU: nothing is computed on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch


@dataclass(eq=False)
class Stream:
    """A stream of one device, and the streams that it has waited for."""

    device: torch.device
    waited_for: list[Stream] = field(default_factory=list)

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


@dataclass(eq=False)
class Event:
    """A mark in a stream that the host can wait for."""

    cuda: FakeCuda
    stream: Stream | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or self.cuda.current_stream()

    def synchronize(self) -> None:
        assert self.stream is not None
        self.cuda.host_waited_for.append(self.stream)


class FakeCuda:
    """Stands in for `torch.cuda`: two devices with a current stream each, and captures.

    Attributes:
        device: the current device of the process.
        captured: streams that steps were captured on.
        replays: number of replays.
        host_waited_for: streams of the events that the host has waited for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = torch.device("cuda:0")
        self.captured: list[Stream] = []
        self.replays = 0
        self.host_waited_for: list[Stream] = []
        self._current = {torch.device("cuda", n): Stream(torch.device("cuda", n)) for n in range(2)}
        self._capture: tuple[str, int] | None = None  # mode, thread
        self._valid = True
        monkeypatch.setattr(torch.cuda, "set_device", self.set_device)
        monkeypatch.setattr(torch.cuda, "Event", lambda: Event(self))
        monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: Stream(self._gpu(device)))
        monkeypatch.setattr(torch.cuda, "current_stream", self.current_stream)
        monkeypatch.setattr(torch.cuda, "stream", self._stream)
        monkeypatch.setattr(torch.cuda, "graph", self._graph)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)

    def set_device(self, device: torch.device) -> None:
        self.device = device

    def current_stream(self, device: torch.device | None = None) -> Stream:
        return self._current[self._gpu(device)]

    def _gpu(self, device: torch.device | None) -> torch.device:
        """The GPU of this name. Trainings of tests are on the CPU, which stands for the current GPU."""
        return self.device if device is None or device.type == "cpu" else device

    def replay(self) -> None:
        self.replays += 1

    def pin_memory(self) -> None:
        """A call that is unsafe during a capture: cudaHostAlloc."""
        if self._capture is not None:
            mode, thread = self._capture
            self._valid &= mode == "thread_local" and thread != threading.get_ident()

    @contextmanager
    def _stream(self, stream: Stream) -> Iterator[None]:
        device, before = self.device, self._current[stream.device]
        self.device, self._current[stream.device] = stream.device, stream
        try:
            yield
        finally:
            self.device, self._current[stream.device] = device, before

    @contextmanager
    def _graph(
        self, graph: Any, *, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        """As `torch.cuda.graph`: if the capture fails, its stream stays current, and the error is another."""
        stream = stream or Stream(self.device)
        self._capture, self._valid = (capture_error_mode, threading.get_ident()), True
        self.captured.append(stream)
        device, before = self.device, self._current[stream.device]
        self.device, self._current[stream.device] = stream.device, stream
        try:
            yield
        except Exception:
            self._valid = False
            raise
        finally:
            self._capture = None
            if not self._valid:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.device, self._current[stream.device] = device, before
