"""Runs a function on made-up input in a child process, which may crash, hang or take memory.

A function is given the input as bytes and a folder to write to. It returns normally for input that it uses,
and raises `Refused` with one line for input that it refuses. Anything else is a fault.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

SECONDS, BYTES = 5.0, 2 * 2**30
"""Longest time of one input on a processor, and the largest memory that it may add to the process."""
_WAIT = 60.0  # seconds; longest time of one input on the clock, also of a machine with other work
_STOP = 3 * BYTES  # the child gets no more, so that the machine survives
_ROUND = 200  # inputs that are drawn from one seed
_START = 120.0  # seconds for the imports of the child

Function = Callable[[bytes, Path], None]


class Refused(Exception):
    """The input was refused in one line."""


class Fault(AssertionError):
    """What must not happen, with the input that caused it."""


@dataclass
class Totals:
    """Counts of the inputs, and the largest time and memory of one of them."""

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.inputs:,} inputs, {self.refused:,} refused, at most {self.seconds:.2f} s and"
            f" {self.megabytes:.0f} MB each"
        )


def one_line(message: str) -> None:
    """Check that a message is one line that a person can read, and raise it as `Refused`.

    Raises:
        Fault: it is not.
    """
    if "\n" in message or not message.strip() or "--debug shows where" in message:
        raise Fault(f"not a line of a message: {message[:2000]!r}")
    raise Refused(message)


class Child:
    """A process that runs `function` on one input after another. It is started again after a crash."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self.totals = Totals()

    def check(self, data: bytes) -> None:
        """Run the function on `data`.

        Raises:
            Fault: it crashed, was too slow, took too much memory, or raised anything but `Refused`.
        """
        pipe = self._pipe or self._start()
        begun = time.monotonic()
        try:
            pipe.send_bytes(data)
            self._wait(pipe)
            kind, text, grown = pipe.recv()
        except (EOFError, OSError, Fault) as error:
            code = self.close()
            raise Fault(f"{error!r}, exit code {code}, for {data[:2000]!r}") from error
        self.totals.inputs += 1
        self.totals.refused += kind == "refused"
        self.totals.seconds = max(self.totals.seconds, time.monotonic() - begun)
        self.totals.megabytes = max(self.totals.megabytes, grown / 2**20)
        if kind == "fault" or grown > BYTES:
            self.close()
            raise Fault(f"{text} ({grown / 2**20:.0f} MB) for {data[:2000]!r}")

    def _wait(self, pipe: Connection) -> None:
        """Wait for the answer to an input.

        Raises:
            Fault: it takes too long.
        """
        before, until = self._cpu_seconds(), time.monotonic() + _WAIT
        while not pipe.poll(0.5):
            if self._cpu_seconds() - before > SECONDS or time.monotonic() > until:
                raise Fault(f"longer than {SECONDS} s on a processor, or {_WAIT} s in all")

    def _cpu_seconds(self) -> float:
        """Time of the process on a processor so far; 0 if it has ended."""
        assert self._process is not None
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> int | None:
        """End the process; returns its exit code if it had ended before."""
        code = None
        if self._process is not None:
            self._process.join(0.5)
            code = self._process.exitcode
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None
        return code

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._function, theirs), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(_START) or self._pipe.recv() != "ready":
            raise RuntimeError("the child does not start")
        return self._pipe


def _serve(function: Function, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silent = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):  # libraries in C print their warnings
        os.dup2(silent, number)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
    with tempfile.TemporaryDirectory() as name:
        _outcome(function, b"", Path(name))  # its imports are not a part of the first input
        resource.setrlimit(resource.RLIMIT_DATA, (_STOP, _STOP))
        pipe.send("ready")
        while True:
            data, before = pipe.recv_bytes(), _peak()
            kind, text = _outcome(function, data, Path(name))
            pipe.send((kind, text, _peak() - before))


def _outcome(function: Function, data: bytes, folder: Path) -> tuple[str, str]:
    try:
        function(data, folder)
    except Refused as error:
        return "refused", str(error)
    except BaseException:
        return "fault", traceback.format_exc()[-3000:]
    return "used", ""


def _peak() -> int:
    """Largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(function: Function, inputs: st.SearchStrategy[bytes], seconds: float, first_seed: int) -> Totals:
    """Run `function` on inputs for some seconds.

    Raises:
        Fault: see `Child.check`; hypothesis has made the input as small as it can.
    """
    child, end = Child(function), time.monotonic() + seconds
    number = first_seed
    try:
        while time.monotonic() < end:

            @seed(number)
            @settings(
                max_examples=_ROUND,
                deadline=None,
                database=None,
                print_blob=False,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.generate, Phase.shrink),
            )
            @given(inputs)
            def attack(data: bytes) -> None:
                child.check(data)

            attack()
            number += 1
    finally:
        child.close()
    return child.totals


_SIZES = [(size, order) for size in (1, 2, 4, 8) for order in ("little", "big")]
INTEGERS = st.sampled_from(
    [
        value.to_bytes(size, "little" if order == "little" else "big")
        for size, order in _SIZES
        for value in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
    ]
)
"""Numbers of 1 to 8 bytes at which sizes and signs change."""


@st.composite
def damaged(draw: st.DrawFn, wholes: dict[str, bytes]) -> bytes:
    """One of some files with a few places overwritten, removed, repeated or cut off."""
    data = bytearray(wholes[draw(st.sampled_from(sorted(wholes)))])
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 2, 4)))):
        place = draw(st.one_of(st.integers(0, min(len(data), 700)), st.integers(0, len(data))))
        match draw(st.integers(0, 5)):
            case 0:
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                new = draw(INTEGERS)
                data[place : place + len(new)] = new
            case 2:
                del data[place : place + draw(st.integers(1, 200))]
            case 3:
                data[place:place] = data[place : place + draw(st.integers(1, 600))] * draw(st.integers(1, 20))
            case 4:
                data[place:place] = draw(st.binary(max_size=30))
            case _:
                data[place:] = data[place:][: draw(st.integers(0, 100))]
    return bytes(data)
