"""Print the output of the commands: progress, tables, and images that could not be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from noisystudent.errors import InputError, brief, printable

if TYPE_CHECKING:
    from noisystudent.console import Progress
    from noisystudent.evaluation.rows import Row

STANDARD_INPUT = "/dev/stdin"
"""Name of standard input among images; - in a call."""

_WIDTH = 4096  # characters; wide enough that no row is folded if the output is not a terminal


@contextmanager
def progress(*, stderr: bool = False, json: bool = False, silent: bool = False) -> Iterator[Progress]:
    """Print progress within the block, and stop the work there on SIGINT or SIGTERM.

    Args:
        stderr: print on standard error, because the results go to standard output.
        json: print JSON lines on standard output.
        silent: print nothing, because another process of the run does.
    """
    from noisystudent.console import Progress, stop_on_signal
    from noisystudent.terminal import Terminal

    shown = Progress()
    beating: AbstractContextManager[None] = nullcontext()
    if json and not silent:
        from noisystudent.trackers.json_lines import JsonLines  # which other commands need not load

        shown = JsonLines()
    elif not silent:
        shown = Terminal(stderr=stderr)
        beating = shown.heartbeat()
    with stop_on_signal(shown), beating:
        try:
            yield shown
        finally:
            shown.close()


def with_input(images: tuple[str, ...]) -> tuple[str, ...]:
    """The given names, or those on standard input, one a line, if it is what is given.

    Raises:
        InputError: standard input has none.
    """
    if images != (STANDARD_INPUT,):
        return images
    lines = sys.stdin.read().split("\n")  # splitlines also splits at U+2028
    names = tuple(name for name in (line.removesuffix("\r") for line in lines) if name)
    if not names:
        raise InputError("images are -, but standard input names none; give one name a line")
    return names


def print_bad(bad: list[tuple[str, str]]) -> None:
    """Print the images that could not be read, on standard error."""
    for name, reason in bad:
        line = f"noisystudent: {name}: {reason}; it has no row in the output"
        print(brief(printable(line)), file=sys.stderr)


def line(text: str) -> None:
    """Print one line."""
    print(printable(text))


def note(text: str) -> None:
    """Print one line on standard error."""
    print(f"noisystudent: {printable(text)}", file=sys.stderr)


def print_origin(weights: Path | None) -> None:
    """Print on standard error which model was used; a run directory has several, an unfinished one fewer.

    Args:
        weights: its file. None: the user named published weights, and nothing is printed.
    """
    from noisystudent.inference.load import origin

    if weights is not None:
        print(f"noisystudent: the model is {origin(weights)}", file=sys.stderr)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. If the output is not a terminal, each row is one line, so that programs can read it."""
    _console().print(_grid(header, rows))


@contextmanager
def changing_table(header: Sequence[str]) -> Iterator[Callable[[Sequence[Sequence[str]], str], None]]:
    """Give a function that replaces the table, and the line under it, on the terminal.

    A terminal that is too low for all rows shows the last ones, and all at the end. Elsewhere only the last
    table is printed.
    """
    console = _console()
    with Live(console=console, auto_refresh=False) as live:
        whole = Group()

        def show(rows: Sequence[Sequence[str]], last: str) -> None:
            nonlocal whole
            text = escape(printable(last))
            shown = whole = Group(_grid(header, rows), text)
            while len(console.render_lines(shown)) > console.height and rows:
                rows = rows[1:]
                shown = Group(_grid(header, rows), text)
            live.update(shown, refresh=True)

        yield show
        live.update(whole)
    if not console.is_terminal:
        console.line()  # Live ends the last line on a terminal alone


def json_line(content: Mapping[str, object]) -> None:
    """Print a JSON object in one line."""
    print(json.dumps(content), flush=True)


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        grid.add_column(name, overflow="fold")
    for row in rows:
        grid.add_row(*(escape(printable(cell)) for cell in row))  # rich would read [name] as markup
    return grid


def print_rows(results: Iterable[Row], out: Path | None) -> None:
    """Print the results of a model as a table, and write them to `out`.

    Results that were computed before an error are printed and written, too.
    """
    from noisystudent.evaluation.rows import write_rows

    rows: list[Row] = []
    try:
        for row in results:
            rows.append(row)
            # Written after each row: a late error, or a kill, does not lose what took hours.
            if out is not None:
                write_rows(rows, out)
    finally:
        spans = ["" if row.low is None else f"{row.low:.4f} to {row.high:.4f}" for row in rows]
        lines = [
            (r.test, r.measure, f"{r.value:.4f}", span, r.note) for r, span in zip(rows, spans, strict=True)
        ]
        if lines:
            table(("test", "measure", "value", "95% interval", "note"), lines)
