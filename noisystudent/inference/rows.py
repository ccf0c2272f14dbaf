"""One number of a measured model, as it is printed and written."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from noisystudent import rundir
from noisystudent.rundir import check_out

SUFFIXES = (".json", ".csv")


class Row(NamedTuple):
    """`low` and `high` are the interval over images, None where there is none."""

    test: str
    measure: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


def write_rows(rows: Sequence[Row], out: Path) -> None:
    """All rows as .json or .csv, whole or not at all, in place of those written before.

    Raises:
        InputError: another ending.
        RunError: the disk is full.
    """
    check_out(out, overwrite=True, suffixes=SUFFIXES)
    if out.suffix == ".json":
        rundir.write_json(out, [row._asdict() for row in rows])
        return
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(Row._fields)
    lines.writerows(rows)
    rundir.write_text(out, text.getvalue())
