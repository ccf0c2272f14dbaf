"""Predictions as CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from noisystudent import rundir
from noisystudent.errors import InputError
from noisystudent.inference import Predicted

Format = Literal["csv", "json", "parquet"]
ENDINGS: dict[str, Format] = {".csv": "csv", ".json": "json", ".parquet": "parquet"}


def write(found: Predicted, classes: tuple[str, ...], out: Path | None, form: Format | None) -> None:
    """Write a row an image: id, class, probability, and the probability of every class.

    Args:
        found: what was predicted.
        classes: names of the columns of its probabilities.
        out: a file; None is standard output.
        form: None: by the ending of `out`, else csv.

    Raises:
        InputError: Parquet to standard output.
    """
    chosen = form or (ENDINGS.get(out.suffix.lower()) if out else None) or "csv"
    if chosen == "parquet":
        if out is None:
            raise InputError("--format parquet needs a file: --out FILE.parquet")
        rundir.write_table(out, pa.table(_columns(found, classes)))
        return
    writers: dict[str, Callable[[dict[str, Any]], str]] = {"csv": _csv, "json": _json}
    text = writers[chosen](_columns(found, classes))
    if out is None:
        sys.stdout.write(text)
    else:
        rundir.write_text(out, text)


def _columns(found: Predicted, classes: tuple[str, ...]) -> dict[str, Any]:
    best = found.probs.argmax(axis=1)
    columns: dict[str, Any] = {
        "id": found.ids,
        "class": [classes[k] for k in best],
        "probability": found.probs.max(axis=1).tolist() if len(found.ids) else [],
    }
    # A class may be called 'id': its column must not hide the id.
    return columns | {f"p({name})": found.probs[:, k].tolist() for k, name in enumerate(classes)}


def _csv(columns: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _json(columns: dict[str, Any]) -> str:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
