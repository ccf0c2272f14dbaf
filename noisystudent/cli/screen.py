"""What a command shows: a voice with progress and signals for long work, tables, images without a row."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from noisystudent.console import Terminal
    from noisystudent.inference import Row
    from noisystudent.runtime import StopFlag

_WIDTH = 4096  # no row is folded where the output is not a terminal


@contextmanager
def voice(log: Path | None = None, *, apart: bool = False) -> Iterator[tuple[Terminal, StopFlag]]:
    """Something to speak through, `apart` from what is printed, and the flag of SIGTERM and Ctrl-C."""
    from noisystudent.console import Terminal
    from noisystudent.runtime import stop_on_signal

    terminal = Terminal(log, apart=apart)
    with stop_on_signal() as stop:
        try:
            yield terminal, stop
        finally:
            terminal.close()


def tell_bad(bad: list[tuple[str, str]]) -> None:
    """Name the images that could not be read."""
    for name, reason in bad:
        print(f"noisystudent: {name}: {reason}; it has no row", file=sys.stderr)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table, as wide as its content where the output is not a terminal: programs read it too."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*map(escape, row))
    Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH).print(shown)


def measured(found: Iterable[Row], out: Path | None) -> None:
    """The numbers of a model; those that were found before an error too."""
    from noisystudent.inference import write_rows

    rows: list[Row] = []
    try:
        for row in found:
            rows.append(row)
            if out is not None:
                write_rows(rows, out)
    finally:
        spans = ["" if row.low is None else f"{row.low:.4f} to {row.high:.4f}" for row in rows]
        lines = [
            (r.test, r.measure, f"{r.value:.4f}", span, r.note) for r, span in zip(rows, spans, strict=True)
        ]
        if lines:
            table(("test", "measure", "value", "95% interval", "note"), lines)
