"""The thumbnails of a finished run agree with its selection and its predictions."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from PIL import Image

from noisystudent.metrics.scores import load_predictions

ROLES = {"teacher": "iteration-0/teacher", "student": "iteration-1/student", "control": "iteration-1/control"}


@pytest.fixture(scope="module")
def content(finished: Path) -> dict[str, Any]:
    return dict(json.loads((finished / "iteration-1" / "gallery.json").read_text()))


def test_each_thumbnail_has_the_decision_on_its_image(finished: Path, content: dict[str, Any]) -> None:
    rows = pq.read_table(finished / "iteration-1" / "selection.parquet").to_pylist()
    parts = sorted((finished / "iteration-1" / "labels").glob("*.parquet"))
    names = [name for part in parts for name in pq.read_table(part, columns=["id"])["id"].to_pylist()]
    decided = {names[row["row"]]: row for row in rows}
    shown = [(group["class"], image) for group in content["classes"] for image in group["images"]]
    assert shown
    for name, image in shown:
        row = decided[image["id"]]
        assert (tiny.CLASSES[row["label"]], row["confidence"]) == (name, image["confidence"])
        assert (image["reason"], image["kept"]) == (row["reason"], row["repeats"] > 0)
        assert image["agreement"] is None, "there is one teacher"


def test_the_mistakes_are_those_of_the_predictions(finished: Path, content: dict[str, Any]) -> None:
    found = content["mistakes"]
    predictions = {
        role: load_predictions(finished / path / "predictions-test.npz") for role, path in ROLES.items()
    }
    probs, labels = predictions["student"]
    wrong = np.flatnonzero(probs.argmax(axis=1) != labels)
    assert found["set"] == "test" and found["total"] == len(wrong)
    assert len(found["images"]) == min(len(wrong), 100)
    assert wrong.size, "this test needs mistakes"
    order = wrong[np.argsort(-probs[wrong].max(axis=1), kind="stable")]
    for row, image in zip(order, found["images"], strict=False):
        assert image["truth"] == tiny.CLASSES[labels[row]]
        for role, (each, _) in predictions.items():
            name, confidence = image["predicted"][role]
            assert (name, confidence) == (tiny.CLASSES[each[row].argmax()], float(each[row].max()))
        assert image["id"].split("/")[0] == image["truth"], "the file is in the folder of its class"
        assert Image.open(io.BytesIO(base64.b64decode(image["jpeg"]))).format == "JPEG"
