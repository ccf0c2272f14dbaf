"""Progress that is printed: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from noisystudent.console import Progress
from noisystudent.errors import printable

_PLAIN_SECONDS = 15.0  # least time between two lines of progress if the output is not a terminal
_SILENT_SECONDS = 55.0  # longest time there without a line: a minute, less the time that a thread may wait


class Terminal(Progress):
    """Prints progress: bars with rate and time left on a terminal, plain lines elsewhere.

    Args:
        stderr: print on standard error, so that standard output holds only what another program reads.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__()
        self._console = Console(highlight=False, soft_wrap=True, stderr=stderr)
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}  # task -> (time, units done) at its start
        self._done: dict[str, int] = {}  # task -> units done
        self._last_plain = 0.0
        self._printed = time.monotonic()  # time of the last line of any kind
        self._latest = ("the start", self._printed)  # what was reported last, and when

    def say(self, line: str) -> None:
        """Print one line above the bars."""
        self.close()  # a moving bar would be drawn over the line
        self._latest = (line, time.monotonic())
        self._print(line)

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        """Move the bar of `task`. Elsewhere, print its rate and time left, at most once in 15 seconds."""
        now = time.monotonic()
        if done < self._done.get(task, 0):  # the same work again, on something else
            del self._started[task]
        self._done[task] = done
        # A resumed task starts above 0: its rate counts only the units done since then.
        started, first = self._started.setdefault(task, (now, done))
        rate = (done - first) / max(now - started, 1e-9)
        if self._console.is_terminal:
            self._move_bar(task, done, total, f"{rate:,.1f}/s  {note}" if rate else note)
            return
        note = f", {note}" if note else ""
        self._latest = (f"{task}: {done:,} of {total:,}{note}", now)
        if now - max(self._last_plain, started) >= _PLAIN_SECONDS and rate:
            self._last_plain = now
            left = f"{(total - done) / rate:,.0f} s left"
            self._print(f"  {task}: {done:,} of {total:,}, {rate:,.1f} per second{note}, {left}")

    def close(self) -> None:
        """Remove the bars."""
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._tasks = None, {}

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Within the block, print a line whenever nothing was printed for a minute.

        Some work reports nothing for long: a single query, or the scan of a file. On a terminal nothing is
        printed, because the bar moves.
        """
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(max(0.0, self._printed + _SILENT_SECONDS - time.monotonic())):
                self._beat(time.monotonic())

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        if not self._console.is_terminal:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if thread.is_alive():
                thread.join()

    def _beat(self, now: float) -> None:
        """Print what was reported last, if nothing was printed for a minute before the time `now`."""
        if now - self._printed >= _SILENT_SECONDS:
            text, since = self._latest
            with suppress(OSError):  # the next line of the main thread raises it too, where it is handled
                self._print(f"  at work; {now - since:,.0f} s ago: {text}")

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        self._console.print(escape(printable(line)))  # a path may hold brackets, which rich reads as markup

    def _move_bar(self, task: str, done: int, total: int, note: str) -> None:
        if self._bars is None:
            name, noted = TextColumn("{task.description}"), TextColumn("{task.fields[note]}", markup=False)
            columns = (name, BarColumn(), MofNCompleteColumn(), noted, TimeRemainingColumn())
            self._bars = Bars(*columns, console=self._console, transient=True)
            self._bars.start()
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(escape(printable(task)), total=total, note="")
        self._bars.update(self._tasks[task], completed=done, total=total, note=printable(note))
