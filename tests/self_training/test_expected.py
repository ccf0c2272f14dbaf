"""A run says before a student is trained how many labels it keeps and how many of them are likely right."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny

from noisystudent.inference.load import load_predictor
from noisystudent.inference.predict import predict
from noisystudent.metrics import scores
from noisystudent.metrics.precision import Precision
from noisystudent.report import build
from noisystudent.self_training import expected


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [("student.selection.mode", "adaptive"), ("student.selection.top_fraction", [0.5, 1.0])],
        [("student.selection.max_confidence", 0.9)],
    ],
)
def test_the_estimate_is_of_the_val_images_that_the_selection_would_keep(
    images: Path, finished: Path, tmp_path: Path, fields: list[tuple[str, object]]
) -> None:
    shutil.copytree(finished, out := tmp_path / "run")
    given = tiny.config(images, *fields)
    lines = tiny.run(given, out)
    probs, labels = scores.load_predictions(out / "iteration-0" / "teacher" / "predictions-val.npz")
    table = pq.read_table(out / "iteration-1" / "selection.parquet").to_pylist()
    kept = right = 0
    for row, label in zip(probs, labels, strict=True):
        chosen = [r["confidence"] for r in table if r["repeats"] and r["label"] == row.argmax()]
        if chosen and min(chosen) <= row.max() <= given.students[0].selection.max_confidence:
            kept, right = kept + 1, right + (row.argmax() == label)
    record = json.loads((out / "iteration-1" / "selection.stage.json").read_text())["result"]["precision"]
    assert (record["images"], record["kept"], record["right"]) == (len(labels), kept, right)
    assert record["curve"][0] == {
        "threshold": 0.0,
        "kept": 12,
        "right": (probs.argmax(axis=1) == labels).sum(),
    }
    able = probs.max(axis=1) <= given.students[0].selection.max_confidence
    *_, counted, hits = np.array(record["bins"]).sum(axis=0)
    assert (counted, hits) == (able.sum(), (probs.argmax(axis=1) == labels)[able].sum())
    shown = json.loads((out / "iteration-1" / "evaluation.json").read_text())["selection"]["precision"]
    assert shown["share"] == right / kept and shown["low"] <= shown["share"] <= shown["high"]
    (line,) = [line for line in lines if "expected to be right" in line and line.startswith("selection-1")]
    assert line == f"selection-1: {shown['sentence']}" and f"from {kept} of 12 val images" in line
    stages = ("student-1:", "control-1:")
    later = [at for at, each in enumerate(lines) if each.startswith(stages) and "moved to" not in each]
    assert lines.index(line) < min(later)
    assert line in tiny.run(given, out), "a second call prints it, too"
    assert shown["sentence"] in build(out).read_text()


def test_transforms_of_the_labelling_are_those_of_the_estimate(images: Path, tmp_path: Path) -> None:
    """With the mirror image, val is predicted with it too: its confidences are not those that were saved."""
    fields = [("student.pseudo_label.flip", True), ("student.selection.mode", "all")]
    tiny.run(tiny.config(images, *fields, ("student.train.steps", 4)), tmp_path)
    record = json.loads((tmp_path / "iteration-1" / "selection.stage.json").read_text())
    rows = record["result"]["precision"]["curve"]
    teacher = load_predictor(tmp_path / "iteration-0" / "teacher", "cpu")
    found = predict(replace(teacher, flip=True), images / "val").probs.max(axis=1)
    plain = predict(teacher, images / "val").probs.max(axis=1)
    assert not np.allclose(found, plain, atol=1e-4)
    assert [row["kept"] for row in rows] == [(found >= row["threshold"]).sum() for row in rows]


@pytest.mark.parametrize("teacher", ["stored", "ema"])
def test_wrong_stored_labels_are_a_warning_only_to_a_student_that_learns_from_them(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str
) -> None:
    wrong = Precision(images=100, kept=100, right=30, level=0.95, source="val")
    monkeypatch.setattr(expected, "precision", lambda *_: wrong)
    shutil.copytree(finished, out := tmp_path / "run")
    fields = [
        ("student.pseudo_label.teacher", teacher),
        ("student.train.steps", 6),
        ("data.pool_truth", False),
    ]
    lines = tiny.run(tiny.config(images, *fields), out)
    warned = any(line.startswith("warning: selection-1: fewer than 80%") for line in lines)
    reasons = json.loads((out / "verdict.json").read_text())["reasons"]
    assert (
        warned
        == any("pseudo-labels are probably wrong" in reason for reason in reasons)
        == (teacher == "stored")
    )
