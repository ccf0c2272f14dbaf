"""Write predictions as CSV, JSON or Parquet."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from noisystudent.errors import InputError, printable
from noisystudent.inference.predict import Predictions
from noisystudent.run.files import atomic, csv_lines, write_table

Format = Literal["csv", "json", "parquet"]
Columns = dict[str, list[str] | NDArray[np.float32]]
"""{name: values of all images}; probabilities stay in their array, which is far smaller than a list."""
_ROWS = 1024  # in memory as numbers of Python at once
ENDINGS: dict[str, Format] = {".csv": "csv", ".json": "json", ".parquet": "parquet"}


def check_top_k(count: int | None, classes: tuple[str, ...]) -> None:
    """Check the number of classes of each image, before the images are predicted.

    Raises:
        InputError: below 1, or more than the model has.
    """
    if count is not None and not 1 <= count <= len(classes):
        raise InputError(f"--top-k is {count}; it must be 1 to {len(classes)}, the classes of the model")


def output_format(out: Path | None, given: Format | None) -> Format:
    """Return the format: the given one, that of the suffix of `out`, or csv.

    Raises:
        InputError: Parquet to standard output.
    """
    form = given or (ENDINGS.get(out.suffix.lower()) if out else None) or "csv"
    if form == "parquet" and out is None:
        raise InputError("--format parquet needs a file: --out FILE.parquet")
    return form


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
    chosen = output_format(out, form)
    if out is not None and chosen == "parquet":
        write_table(out, pa.table({name: _doubles(values) for name, values in columns.items()}))
        return
    writers: dict[str, Callable[[Columns], Iterator[str]]] = {"csv": _csv, "json": _json}
    texts = writers[chosen](columns)
    if out is None:
        shown = sys.stdout.isatty()
        for text in texts:
            # A program that reads the output gets the exact names.
            sys.stdout.write("\n".join(map(printable, text.split("\n"))) if shown else text)
    else:
        with atomic(out) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            file.writelines(texts)


def _columns(predictions: Predictions, classes: tuple[str, ...]) -> Columns:
    """Columns of the table with the probabilities of all classes."""
    probs = predictions.probs
    columns: Columns = {
        "id": predictions.ids,
        "class": [classes[k] for k in probs.argmax(axis=1)],
        "probability": probs.max(axis=1),
    }
    # `p(name)` instead of the name: a class may be called 'id', and its column must not replace the id.
    return columns | {f"p({name})": probs[:, k] for k, name in enumerate(classes)}


def _top(predictions: Predictions, classes: tuple[str, ...], count: int) -> Columns:
    """Columns of the table with the `count` most probable classes. Of equal ones the first comes first."""
    probs = predictions.probs
    order = np.argsort(-probs, axis=1, kind="stable")[:, :count]
    columns: Columns = {"id": predictions.ids}
    for place in range(count):
        number, best = f" {place + 1}" if place else "", order[:, place]
        columns[f"class{number}"] = [classes[k] for k in best]
        columns[f"probability{number}"] = np.take_along_axis(probs, best[:, None], 1)[:, 0]
    return columns


def _doubles(values: list[str] | NDArray[np.float32]) -> list[str] | NDArray[np.float64]:
    return values.astype(np.float64) if isinstance(values, np.ndarray) else values


def _rows(columns: Columns) -> Iterator[tuple[str | float, ...]]:
    """Rows of the table."""
    for start in range(0, len(columns["id"]), _ROWS):
        parts = (values[start : start + _ROWS] for values in columns.values())
        lists = (part.tolist() if isinstance(part, np.ndarray) else part for part in parts)
        yield from zip(*lists, strict=True)


def _csv(columns: Columns) -> Iterator[str]:
    """Lines of the file."""
    return csv_lines(chain([columns], _rows(columns)))


def _json(columns: Columns) -> Iterator[str]:
    """Pieces of the file, one for each row."""
    before = "["
    for row in _rows(columns):
        text = json.dumps([dict(zip(columns, row, strict=True))], indent=1, ensure_ascii=False)
        yield before + text[1:-2]  # without the brackets of the list
        before = ","
    yield "[]\n" if before == "[" else "\n]\n"
