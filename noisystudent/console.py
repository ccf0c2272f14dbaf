"""Progress of long work: what receives it, a log file, and the signals that stop the work."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from noisystudent.distributed import is_main_process
from noisystudent.errors import Stopped, printable

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that stop the work. A repeated SIGINT, that is Ctrl-C, ends the process at once."""

INTERRUPTED = 130  # exit code after a second Ctrl-C; shells use it for a command that SIGINT has killed
Handler = Callable[[int, FrameType | None], object] | signal.Handlers


class StopFlag:
    """Flag that the signals of `STOP_SIGNALS` set. Long work checks it where stopping loses nothing.

    Attributes:
        signal: name of the signal that was received first, e.g. "SIGTERM"; None if there was none.
    """

    def __init__(self) -> None:
        self.signal: str | None = None

    def set(self) -> None:
        """Stop the work because of a signal to another process of the same run."""
        if self.signal is None:
            self.signal = "a signal to another process"

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Set the flag; a second Ctrl-C ends the process. This is a signal handler."""
        if self.signal is None:
            self.signal = signal.Signals(number).name
        # The next point where the work may stop can be minutes away, and the user does not want to wait.
        # Other signals are often sent twice: to the process, and to its group.
        elif number == signal.SIGINT:
            _end("interrupted; run the same command again to resume", INTERRUPTED)


class Progress:
    """Receives the progress of long work, and holds the flag that stops it. This base class prints nothing.

    Args:
        stop: flag that stops the work. None: a new flag, which no signal sets.
    """

    def __init__(self, stop: StopFlag | None = None) -> None:
        self.stop = stop or StopFlag()
        self._lines = set[str]()  # of `say_once`

    def say(self, line: str) -> None:
        """Print one line."""

    def say_once(self, line: str) -> None:
        """Print one line, unless it was given before."""
        if line not in self._lines:
            self._lines.add(line)
            self.say(line)

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` units of `task` are done. Most calls print nothing.

        Args:
            task: name of the work.
            done: units that are done.
            total: all units.
            note: text beside the units, such as the loss of a training.
        """

    def finish(self, record: Path) -> None:
        """A stage of a run is finished, and its record is written."""

    def close(self) -> None:
        """Remove what moves on the screen."""

    @property
    def signal(self) -> str | None:
        """Name of the signal that stops the work, or None."""
        return self.stop.signal

    def check(self) -> None:
        """Stop the work if a signal was received.

        Raises:
            Stopped: a signal was received.
        """
        if self.signal is not None:
            raise Stopped(f"stopped by {self.signal}; run the same command again to resume")


_active = [Progress()]  # innermost last


def active() -> Progress:
    """The progress of the innermost `stop_on_signal`; outside of it, one that prints nothing."""
    return _active[-1]


@contextmanager
def stop_on_signal(progress: Progress) -> Iterator[None]:
    """Let the signals of `STOP_SIGNALS` set the flag of `progress` within the block (main thread only).

    Raises:
        Stopped: a signal came within the block.
    """
    before = _handle(progress.stop.handle)
    _active.append(progress)
    try:
        yield
    except Stopped:
        raise
    except Exception:
        # A signal to the whole process group can end what this process needs: not a failure of the run.
        progress.check()
        raise
    finally:
        _active.pop()
        for number, handler in before.items():
            signal.signal(number, handler)
    progress.check()  # it may have come after the last check of the block


def end_on_signal() -> None:
    """Let the signals of `STOP_SIGNALS` end this process at once, in one line, outside of `stop_on_signal`.

    For the main function of a command. Ending at once is a kill, after which all files are valid. An
    exception could be raised in any code at all, and would be a traceback there.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        _end(f"stopped by {signal.Signals(number).name}; run the same command again", Stopped.exit_code)

    _handle(end)


def end_silently(code: int) -> None:
    """Let the signals of `STOP_SIGNALS` end this process with `code`; for one that has printed its line."""
    _handle(lambda _number, _frame: os._exit(code))


def ignore_signals() -> None:
    """Ignore the signals of `STOP_SIGNALS`: Python takes handlers away before it has ended."""
    _handle(signal.SIG_IGN)


def _handle(handler: Handler) -> dict[int, Any]:
    """Set the handler of the signals of `STOP_SIGNALS`; returns the handlers from before.

    SIGHUP stays ignored under nohup.
    """
    numbers = [n for n in STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def _end(message: str, code: int) -> None:
    """Print a line and end the process without any cleaning up."""
    # os.write, because the signal may have come while the same stream was being written to.
    line = f"noisystudent: {message}\n"
    if sys.__stderr__ is not None and sys.__stderr__.isatty():
        line = f"\r\x1b[K\x1b[?25h{line}"  # over the moving bar, which has hidden the cursor
    if is_main_process():  # the signal goes to all processes of a run
        with suppress(OSError):  # standard error may be closed
            os.write(2, line.encode())
    os._exit(code)


class Relay(Progress):
    """Passes everything on to `progress`, and stops with it. Base class of those that add something."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress.stop)
        self._progress = progress

    def say(self, line: str) -> None:
        """Print one line."""
        self._progress.say(line)

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` units of `task` are done."""
        self._progress.advance(task, done, total, note)

    def finish(self, record: Path) -> None:
        """A stage of a run is finished, and its record is written."""
        self._progress.finish(record)


class Logged(Relay):
    """Passes everything on to `progress`, and appends each line with the time to the file `log`."""

    def __init__(self, progress: Progress, log: Path) -> None:
        super().__init__(progress)
        self._log = log

    def say(self, line: str) -> None:
        """Print one line and append it to the log."""
        super().say(line)
        append_log(self._log, line)


class Prefixed(Relay):
    """Passes everything on to `progress`, with `name` in front of every line and task."""

    def __init__(self, progress: Progress, name: str) -> None:
        super().__init__(progress)
        self._name = name

    def say(self, line: str) -> None:
        """Print `<name>: <line>`."""
        super().say(f"{self._name}: {line}")

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        """Show the progress of `<name>: <task>`."""
        super().advance(f"{self._name}: {task}", done, total, note)


def append_log(log: Path, line: str) -> None:
    """Append a line with the local time to the file `log`."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {printable(line)}\n")
