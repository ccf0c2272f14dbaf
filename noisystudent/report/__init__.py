"""Turn a run directory into one HTML file that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

from pathlib import Path

from noisystudent.report.page import render
from noisystudent.report.read import read_run
from noisystudent.rundir import MARKER, check_out, write_text

__all__ = ["build"]


def build(run: Path, out: Path | None = None, *, overwrite: bool = False) -> Path:
    """Write the report of a run, finished or in progress; what has no files yet is left out and named.

    Args:
        run: the run directory; only its files are read.
        out: the HTML file to write; `report.html` in the run directory by default.
        overwrite: it may take the place of a file that is not the run's own report.

    Returns:
        The file written; the same bytes for the same files.

    Raises:
        InputError: `run` is not a run directory, or as of `check_out`.
        RunError: a file in it is damaged, or the report cannot be written.
    """
    target = run / "report.html" if out is None else out
    content = read_run(run)
    own = out is None and (run / MARKER).is_file()
    check_out(target, overwrite=overwrite or own)
    # A name that was not UTF-8 on disk holds lone surrogates, which no UTF-8 file can carry.
    write_text(target, render(content).encode("utf-8", "replace").decode("utf-8"))
    return target
