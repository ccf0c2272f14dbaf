"""Short names of flags: what users of other programs type from habit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence

from noisystudent.errors import InputError

ALIASES: dict[str, tuple[str, ...]] = {
    "-o": ("--out",),
    "--imgsz": ("--data.resolution", "--teacher.model.resolution", "--student.model.resolution"),
    "--batch": ("--teacher.train.batch_size", "--student.train.batch_size"),
    "--epochs": ("--teacher.train.epochs", "--student.train.epochs"),
    "--model": ("--teacher.model.name", "--student.model.name"),
}
"""Short name -> the flags that it stands for; all get its value."""

CONFIGURED = frozenset({"run", "demo", "plan", "check", "train", "ablate"})
"""Commands that take all fields of the configuration, and so all short names. Others take -o alone."""


def expand(tokens: Sequence[str]) -> list[str]:
    """Replace each short name by the flags that it stands for, in its place: of two flags the later one wins.

    Raises:
        InputError: a short name has no value.
    """
    known = ALIASES if tokens and tokens[0] in CONFIGURED else {"-o": ALIASES["-o"]}
    return list(_expanded(iter(tokens), known))


def _expanded(queue: Iterator[str], known: dict[str, tuple[str, ...]]) -> Iterator[str]:
    for token in queue:
        name, equals, value = token.partition("=")
        if name not in known:
            yield token
            continue
        value = value if equals else next(queue, "")
        if not value:
            raise InputError(f"{name} needs a value: {name} VALUE")
        for flag in known[name]:
            yield from (flag, value)


def help_text(command: Callable[..., None]) -> str:
    """Return the short names that a command takes, for its help; "" if it takes none."""
    if command.__name__ not in CONFIGURED:
        return "Short name: -o for --out." if "out" in inspect.signature(command).parameters else ""
    names = "; ".join(f"{short} for {', '.join(flags)}" for short, flags in ALIASES.items())
    return f"Short names: {names}. The later of two flags for one field wins."


def short_name(field: str) -> str:
    """Return the short name that sets a field of the configuration, or ""."""
    return next((short for short, flags in ALIASES.items() if f"--{field}" in flags), "")
