"""Turn a run directory into one HTML file that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

from pathlib import Path

from noisystudent.report.page import render
from noisystudent.report.read import read_run
from noisystudent.rundir import write_text

__all__ = ["build"]


def build(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run, finished or in progress; what has no files yet is left out and named.

    Args:
        run: the run directory; only its files are read.
        out: the HTML file to write; `report.html` in the run directory by default.

    Returns:
        The file written; the same bytes for the same files.

    Raises:
        InputError: `run` is not a run directory.
        RunError: a file in it is damaged, or the report cannot be written.
    """
    target = run / "report.html" if out is None else out
    # A name that was not UTF-8 on disk holds lone surrogates, which no UTF-8 file can carry.
    write_text(target, render(read_run(run)).encode("utf-8", "replace").decode("utf-8"))
    return target
