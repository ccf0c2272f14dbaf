"""Errors that this package raises on purpose, each with one line for the user and an exit code.

NoisyStudentError
├── InputError    2   a wrong call, a wrong file or a wrong key; the message says what would be right
├── RunError      1   the run cannot continue: a teacher at chance level, a full disk, a vanished image
├── Stopped      75   a signal stopped the run; everything is on disk, and the same command resumes it
└── EndedElsewhere    another process of the run has ended, with a line of its own
"""

import difflib
from collections.abc import Iterable

_HALF = 800  # characters


class NoisyStudentError(Exception):
    """Base class of all errors that this package raises on purpose."""

    exit_code = 1


class InputError(NoisyStudentError):
    """An error that the caller can correct.

    The message names the flag, field or file, its value, and what would be right.
    """

    exit_code = 2


class RunError(NoisyStudentError):
    """The run cannot continue. The files that it has written stay valid."""

    exit_code = 1


class Stopped(NoisyStudentError):
    """A signal stopped the run. The same command resumes it."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: a scheduler may try the same command again


class EndedElsewhere(NoisyStudentError):
    """Another process of the same run has ended, and prints why, so this one ends without a line.

    Args:
        message: what happened there, as far as it is known here.
        exit_code: exit code of the other process.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Clause "; did you mean ...?" with the choice most similar to `word`; empty if no choice is similar."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def root_cause(error: BaseException) -> BaseException:
    """The error that came first: torch raises another one when a compilation or a capture fails."""
    context = None if error.__suppress_context__ else error.__context__
    inner = getattr(error, "inner_exception", None) or error.__cause__ or context
    return error if inner is None else root_cause(inner)


def first_line(error: BaseException) -> str:
    """First line of the message of another library's error, or the name of its class if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """The text without the characters that a terminal acts on: they become escapes such as \\x1b or \\n."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def brief(text: str) -> str:
    """The text with `…` in place of its middle if it is longer than about 20 lines of a terminal."""
    return text if len(text) <= 2 * _HALF else f"{text[:_HALF]} … {text[-_HALF:]}"


def readable_size(size: int) -> str:
    """A number of bytes in the largest unit in which it is at least 1, such as '61.4 KiB'."""
    unit = max(0, size.bit_length() - 1) // 10
    name = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")[unit]
    return f"{size / 1024**unit:,.1f} {name}" if unit else f"{size} {name}"


def is_utf8(text: str) -> bool:
    """False if the text stands for other bytes: Python marks those of file names and arguments."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` is true."""
    if not condition:
        raise InputError(message)
