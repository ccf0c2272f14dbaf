"""One number of a measured model, as it is printed and written."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from noisystudent import rundir
from noisystudent.errors import InputError


class Row(NamedTuple):
    """`low` and `high` are the interval over images, None where there is none."""

    test: str
    measure: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


def check_out(out: Path) -> None:
    """See whether rows can be written to a file, before hours go into them; makes its folder.

    Raises:
        InputError: another ending, or a place that cannot be written.
    """
    if out.suffix not in (".json", ".csv"):
        raise InputError(f"--out is {out}; the file must end in .json or .csv")
    check_file(out)


def check_file(out: Path) -> None:
    """See whether a file can be written; makes its folder.

    Raises:
        InputError: it is a folder, or in one that cannot be written.
    """
    if out.is_dir():
        raise InputError(f"--out is {out}, which is a folder; name a file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out is {out}, which cannot be written: {error.strerror}") from error
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise InputError(f"--out is {out}, but {out.parent} cannot be written; name a file somewhere else")


def write_rows(rows: Sequence[Row], out: Path) -> None:
    """All rows as .json or .csv, whole or not at all.

    Raises:
        InputError: as of `check_out`.
        RunError: the disk is full.
    """
    check_out(out)
    if out.suffix == ".json":
        rundir.write_json(out, [row._asdict() for row in rows])
        return
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(Row._fields)
    lines.writerows(rows)
    rundir.write_text(out, text.getvalue())
