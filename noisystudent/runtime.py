"""The machine a run stands on: device, precision, counter-based randomness, signals."""

from __future__ import annotations

import ctypes
import hashlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

import numpy as np
import torch

from noisystudent.errors import InputError, RunError, Stopped


def _key(seed: int, stream: str, counters: tuple[int, ...]) -> bytes:
    """16 bytes that differ whenever seed, stream or any counter does; stable across versions and machines."""
    text = f"{seed}/{stream}/" + "/".join(map(str, counters))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def generator(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """Random numbers that are a pure function of (seed, stream, counters).

    Philox is counter-based (Salmon et al., SC 2011): no state is carried from one step to the next, so the
    position of a run is one integer.
    """
    key = np.frombuffer(_key(seed, stream, counters), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def torch_seed(seed: int, stream: str, *counters: int) -> int:
    """A 63-bit seed for torch generators, a pure function of its arguments."""
    return int.from_bytes(_key(seed, stream, counters)[:8], "little") >> 1


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU; any other name is torch's. A CPU is made ready for networks.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device is {name!r}, which is not usable here ({reason}); try auto or cpu"
        ) from error
    if device.type == "cpu":
        _keep_freed_memory()
    return device


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def _keep_freed_memory() -> None:
    """Let freed memory stay with this process, where the C library is glibc; elsewhere nothing.

    Every pass allocates and frees the same activations. What goes back to the system in between is zeroed by
    it and mapped again page by page, which made labelling on two cores up to 1.8 times slower. Blocks above
    1 GiB still go back.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, -1)  # never


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU and fp32 on a CPU.

    Raises:
        InputError: it is none of auto, fp32, bf16.
    """
    known = {"fp32": torch.float32, "bf16": torch.bfloat16}
    known["auto"] = known["bf16" if device.type == "cuda" else "fp32"]
    if precision not in known:
        raise InputError(f"precision is {precision!r}; one of auto, fp32, bf16")
    return known[precision]


class StopFlag:
    """Raised by SIGTERM or SIGINT; the work in hand asks it at points where stopping loses nothing."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def check(self) -> None:
        """Stop here if a signal asked for it.

        Raises:
            Stopped: a signal came since the flag was made.
        """
        if self.signal is not None:
            raise Stopped(f"stopped by {self.signal}; run the same command again to resume")

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:  # a second signal means now
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """A `StopFlag` bound to SIGTERM and SIGINT for the length of the block (main thread only).

    Raises:
        Stopped: the block failed after a signal: one to a whole group of processes ends its workers, too.
    """
    flag = StopFlag()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, flag._handle) for number in numbers]
    try:
        yield flag
    except RunError:
        flag.check()
        raise
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class Voice(Protocol):
    """How a run speaks to the person who started it."""

    def say(self, line: str) -> None:
        """One line of news."""

    def progress(self, task: str, done: int, total: int) -> None:
        """`done` of `total` units of `task`; called often, shown seldom."""


class Silent:
    """A voice for libraries and tests."""

    def say(self, line: str) -> None:
        """Nothing."""

    def progress(self, task: str, done: int, total: int) -> None:
        """Nothing."""
