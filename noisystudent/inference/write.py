"""Write predictions as CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from noisystudent.errors import InputError, printable
from noisystudent.inference.predict import Predictions
from noisystudent.run.files import write_table, write_text

Format = Literal["csv", "json", "parquet"]
ENDINGS: dict[str, Format] = {".csv": "csv", ".json": "json", ".parquet": "parquet"}


def check_top_k(count: int | None, classes: tuple[str, ...]) -> None:
    """Check the number of classes of each image, before the images are predicted.

    Raises:
        InputError: below 1, or more than the model has.
    """
    if count is not None and not 1 <= count <= len(classes):
        raise InputError(f"--top-k is {count}; it must be 1 to {len(classes)}, the classes of the model")


def write_predictions(
    predictions: Predictions,
    classes: tuple[str, ...],
    out: Path | None,
    form: Format | None,
    top_k: int | None = None,
) -> None:
    """Write a row for each image: id, class, probability, and the probability of every class.

    With `top_k`, the second to k-th most probable classes (class 2, probability 2, …) take the place of the
    probabilities of all classes.

    Args:
        predictions: the predictions.
        classes: class names, in the order of the probabilities.
        out: the file; None: standard output.
        form: the format; None: by the suffix of `out`, csv for any other.
        top_k: number of classes of each image, see `check_top_k`. None: all, in their own order.

    Raises:
        InputError: Parquet to standard output.
    """
    columns = _columns(predictions, classes) if top_k is None else _top(predictions, classes, top_k)
    chosen = form or (ENDINGS.get(out.suffix.lower()) if out else None) or "csv"
    if chosen == "parquet":
        if out is None:
            raise InputError("--format parquet needs a file: --out FILE.parquet")
        write_table(out, pa.table(columns))
        return
    writers: dict[str, Callable[[dict[str, Any]], str]] = {"csv": _csv, "json": _json}
    text = writers[chosen](columns)
    if out is None:
        # A program that reads the output gets the exact names.
        shown = "\n".join(map(printable, text.split("\n"))) if sys.stdout.isatty() else text
        sys.stdout.write(shown)
    else:
        write_text(out, text)


def _columns(predictions: Predictions, classes: tuple[str, ...]) -> dict[str, Any]:
    """Columns of the table: {name: values of all images}."""
    probs = predictions.probs
    columns: dict[str, Any] = {
        "id": predictions.ids,
        "class": [classes[k] for k in probs.argmax(axis=1)],
        "probability": probs.max(axis=1).tolist() if len(predictions.ids) else [],
    }
    # `p(name)` instead of the name: a class may be called 'id', and its column must not replace the id.
    return columns | {f"p({name})": probs[:, k].tolist() for k, name in enumerate(classes)}


def _top(predictions: Predictions, classes: tuple[str, ...], count: int) -> dict[str, Any]:
    """Columns of the table with the `count` most probable classes. Of equal ones the first comes first."""
    probs = predictions.probs
    order = np.argsort(-probs, axis=1, kind="stable")[:, :count]
    columns: dict[str, Any] = {"id": predictions.ids}
    for place in range(count):
        number, best = f" {place + 1}" if place else "", order[:, place]
        columns[f"class{number}"] = [classes[k] for k in best]
        columns[f"probability{number}"] = np.take_along_axis(probs, best[:, None], 1)[:, 0].tolist()
    return columns


def _csv(columns: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _json(columns: dict[str, Any]) -> str:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
