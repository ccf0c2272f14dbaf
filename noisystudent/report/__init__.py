"""Build the report of a run: one HTML file that needs no network, no server and no other file."""

from __future__ import annotations

from pathlib import Path

from noisystudent.report.page import render
from noisystudent.report.read import read_run
from noisystudent.run.files import check_out, write_text
from noisystudent.run.lock import MARKER
from noisystudent.run.rundir import RunDir

__all__ = ["build"]


def build(run: Path, out: Path | None = None, *, overwrite: bool = False) -> Path:
    """Write the report of a run that is finished or in progress.

    Sections whose files do not exist yet are left out. The page lists their names.

    Args:
        run: run directory. Nothing outside it is read.
        out: HTML file to write. None: `report.html` in the run directory.
        overwrite: True if a file that is not the run's own report may be replaced.

    Returns:
        Path of the file that was written. The same run files always give the same bytes.

    Raises:
        InputError: `run` is not a run directory, or `check_out` refuses the file.
        RunError: a file in it is damaged, or the report cannot be written.
    """
    target = RunDir(run).report if out is None else out
    content = read_run(RunDir(run))
    # A marked folder was written by this package. Its report.html is replaced without --overwrite.
    is_own_report = out is None and (run / MARKER).is_file()
    check_out(target, overwrite=overwrite or is_own_report, flag="" if out is None else "--out")
    # A file name that is not valid UTF-8 on disk is read with lone surrogates, which UTF-8 cannot encode.
    write_text(target, render(content).encode("utf-8", "replace").decode("utf-8"))
    return target
