"""One number of a measured model, as it is printed and written."""

from __future__ import annotations

import csv
import io
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


def write_rows(rows: Sequence[Row], out: Path) -> None:
    """All rows as .json or .csv, whole or not at all.

    Raises:
        InputError: another ending.
    """
    if out.suffix == ".json":
        rundir.write_json(out, [row._asdict() for row in rows])
    elif out.suffix == ".csv":
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(Row._fields)
        lines.writerows(rows)
        rundir.write_text(out, text.getvalue())
    else:
        raise InputError(f"--out is {out}; the file must end in .json or .csv")
