"""What can go wrong, by whose hand: each error is one line for the user and carries its exit code.

NoisyStudentError
├── InputError    2   a wrong call, a wrong file, a wrong key: name it, its value, and what would be right
├── RunError      1   a run that cannot go on: a teacher at chance level, a full disk, a vanished image
└── Stopped      75   a signal asked for it; everything is on disk, run again to resume
"""

import difflib
from collections.abc import Iterable


class NoisyStudentError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class InputError(NoisyStudentError):
    """The caller can mend it: the message names the flag or file, the value, and what would be right."""

    exit_code = 2


class RunError(NoisyStudentError):
    """The run cannot continue; what it has written stays valid."""

    exit_code = 1


class Stopped(NoisyStudentError):
    """A signal asked the run to stop; the same command resumes it (EX_TEMPFAIL)."""

    exit_code = 75


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A clause for a message that names the choice nearest to `word`; nothing where none is near."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def first_line(error: Exception) -> str:
    """An error of another library in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
