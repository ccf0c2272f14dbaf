"""An input to attack the program with: files that are written, a call, and what must be said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Make = Callable[[Path], object]
"""Writes files into the folder of the user, which holds labeled, val, test, pool and a finished run."""

SETS = ("--labeled", "{user}/labeled", "--unlabeled", "{user}/pool")
LENIENT = ("--data.max_bad_fraction", "1", "--data.resolution", "16")


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
        name: of the input; unique within its kind.
        words: of the call. {user} is the folder of the user, {run} a finished run in it, {out} a free path.
        make: writes the files.
        refused: the call must fail. False: it must succeed. None: both are right.
        bad: name of an image that must be named as unreadable; empty for none.
        made: names in the folder of the user that the call may make or change.
        fault: of `zygote.FAULTS`.
    """

    name: str
    words: tuple[str, ...]
    make: Make = lambda user: None
    refused: bool | None = None
    bad: str = ""
    made: tuple[str, ...] = ()
    fault: str = ""

    def filled(self, user: Path, out: Path) -> tuple[str, ...]:
        """Return the words with the paths in them."""
        names = {"{user}": str(user), "{run}": str(user / "run"), "{out}": str(out)}
        words = []
        for word in self.words:
            for name, path in names.items():
                word = word.replace(name, path)
            words.append(word)
        return tuple(words)
