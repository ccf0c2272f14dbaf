"""Predictions are written row by row, with the bytes of the whole table."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisystudent.data.sources import ArraySource
from noisystudent.inference import write
from noisystudent.inference.predict import Predictions
from noisystudent.run.files import csv_lines

NO_IMAGES = ArraySource(np.zeros((1, 2, 2), np.uint8))
CLASSES = ("a", 'q"uote, é', "id")


def predictions(count: int) -> Predictions:
    probs = np.random.default_rng(0).dirichlet(np.ones(len(CLASSES)), count).astype(np.float32)
    return Predictions([(0, row, 0, f"line\n{row}, é.jpg") for row in range(count)], probs, [], NO_IMAGES)


def table(made: Predictions, top_k: int | None) -> dict[str, list[str] | list[float]]:
    """The columns as lists."""
    order = np.argsort(-made.probs, axis=1, kind="stable")
    columns: dict[str, list[str] | list[float]] = {"id": made.ids}
    for place in range(top_k or 1):
        number, best = f" {place + 1}" if place else "", order[:, place]
        columns[f"class{number}"] = [CLASSES[k] for k in best]
        columns[f"probability{number}"] = made.probs[np.arange(len(made.ids)), best].tolist()
    if top_k is None:
        columns |= {f"p({name})": made.probs[:, k].tolist() for k, name in enumerate(CLASSES)}
    return columns


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("top_k", [None, 2])
def test_the_bytes_are_those_of_the_whole_table(
    tmp_path: Path, count: int, top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "_ROWS", 2)
    made = predictions(count)
    columns = table(made, top_k)
    rows = list(zip(*columns.values(), strict=True))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([tuple(columns), *rows])
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    expected = {"csv": text.getvalue(), "json": json.dumps(records, indent=1, ensure_ascii=False) + "\n"}
    for suffix, content in expected.items():
        out = tmp_path / f"p.{suffix}"
        write.write_predictions(made, CLASSES, out, None, top_k)
        assert out.read_bytes() == content.encode()
    write.write_predictions(made, CLASSES, tmp_path / "p.parquet", None, top_k)
    assert pq.read_table(tmp_path / "p.parquet").to_pydict() == columns


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_memory_does_not_grow_with_the_text(tmp_path: Path, suffix: str) -> None:
    classes = tuple(map(str, range(100)))
    made = Predictions(
        [(0, row, 0, f"{row}") for row in range(4000)],
        np.full((4000, 100), 0.01, np.float32),
        [],
        NO_IMAGES,
    )
    out = tmp_path / f"p.{suffix}"
    tracemalloc.start()
    write.write_predictions(made, classes, out, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < out.stat().st_size


@given(st.lists(st.lists(st.text(st.sampled_from("a,\"\r\n\0é ;'")), min_size=1)))
def test_a_cell_holds_any_text(rows: list[list[str]]) -> None:
    """A file name may have a carriage return, which ended its row."""
    text = "".join(csv_lines(rows))
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows
