"""The voice of the command line: progress bars with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from noisystudent.rundir import MARKER

_PLAIN_SECONDS = 15.0  # a plain line of progress at most this often


def note(log: Path, line: str) -> None:
    """Append a line to a log with the time, once the folder is a run's: any other belongs to the user."""
    if (log.parent / MARKER).is_file():
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


class Terminal:
    """Speaks to a person; keeps what was said in a log file.

    Args:
        log: the file.
        apart: speak on standard error, since standard output is for programs.
    """

    def __init__(self, log: Path | None = None, *, apart: bool = False) -> None:
        self._console = Console(highlight=False, soft_wrap=True, stderr=apart)
        self._log = log
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._last_plain = 0.0

    def say(self, line: str) -> None:
        """Print one line, and append it to the log with the time."""
        self._close_bar()
        self._console.print(escape(line))
        if self._log is not None:
            note(self._log, line)

    def progress(self, task: str, done: int, total: int) -> None:
        """Move the bar of `task`; away from a terminal, a line with rate and time left now and then."""
        if self._console.is_terminal:
            self._move_bar(task, done, total)
        else:
            self._plain(task, done, total)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._close_bar()

    def _move_bar(self, task: str, done: int, total: int) -> None:
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        if task not in self._tasks:
            self._tasks[task] = self._bar.add_task(escape(task), total=total)
        self._bar.update(self._tasks[task], completed=done, total=total)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._tasks = None, {}

    def _plain(self, task: str, done: int, total: int) -> None:
        now = time.monotonic()
        started, first = self._started.setdefault(task, (now, done))
        if now - max(self._last_plain, started) < _PLAIN_SECONDS or done <= first:
            return
        self._last_plain = now
        rate = (done - first) / (now - started)
        self._console.print(
            f"  {escape(task)}: {done:,} of {total:,}, {rate:,.1f} a second,"
            f" {(total - done) / rate:,.0f} s left"
        )
