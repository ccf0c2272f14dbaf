"""Memory of this process and of its workers, sampled every 50 ms while the stages of a benchmark run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Meter:
    """Peaks of memory in bytes, and seconds, a stage."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self._stage = "start"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @contextmanager
    def running(self) -> Iterator[Meter]:
        self._sample()
        self._thread.start()
        yield self
        self._over.set()
        self._thread.join()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._stage = name
        begun = time.perf_counter()
        yield
        self._sample()
        self.stages[name]["seconds"] = time.perf_counter() - begun
        self._stage = "between"

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self._sample()

    def _sample(self) -> None:
        peaks = self.stages.setdefault(self._stage, {"main": 0.0, "workers": 0.0, "seconds": 0.0})
        peaks["main"] = max(peaks["main"], _anonymous(os.getpid()))
        peaks["workers"] = max(peaks["workers"], sum(map(_anonymous, _descendants(os.getpid()))))


def _anonymous(process: int) -> int:
    """Pss_Anon in bytes; 0 for a process that has ended."""
    try:
        with open(f"/proc/{process}/smaps_rollup") as file:
            lines = dict(line.split(":", 1) for line in file.read().splitlines()[1:])
        return int(lines["Pss_Anon"].split()[0]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _descendants(process: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = [int(child) for child in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found
