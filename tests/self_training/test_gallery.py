"""The thumbnails of a finished run agree with its selection and its predictions."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from numpy.typing import NDArray
from PIL import Image

from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet
from noisystudent.metrics.scores import load_predictions
from noisystudent.robustness.corruptions import CORRUPTIONS, corrupt
from noisystudent.robustness.results import Results, stratified
from noisystudent.self_training import robustness
from noisystudent.self_training.context import Context
from noisystudent.self_training.gallery import encoded, mistakes
from noisystudent.self_training.training import predictor

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
        assert image["junk"] == row["junk"]
        assert image["agreement"] is None, "there is one teacher"


def test_the_corrupted_thumbnails_are_what_the_models_were_tested_on(finished: Path, images: Path) -> None:
    asked, (_, dataset) = tiny.config(images, ("evaluate.tests", ["c"])), tiny.opened(images, finished)
    assert dataset.test is not None
    context = cast(Context, SimpleNamespace(config=asked, judged=("test", dataset.test)))
    training = tiny.training(asked, dataset, finished / "iteration-1" / "student")
    found = robustness.thumbnails(context, training)
    view = next(iter(predictor(training).views(dataset.test, np.arange(1))))
    assert found["clean"] == encoded(view[0])
    assert {*found["corrupted"]} | {"frost"} == {*CORRUPTIONS}
    for name, copies in found["corrupted"].items():
        assert [*copies] == ["1", "3", "5"]
        for severity, jpeg in copies.items():
            if name != "frost":  # it needs photographs
                rows = np.arange(1)
                assert jpeg == encoded(corrupt(view, name, int(severity), seed=asked.seed, rows=rows)[0])


def test_an_image_has_the_same_random_numbers_in_a_sample_of_a_run(
    finished: Path, images: Path, tmp_path: Path
) -> None:
    """Those of its row, as in `evaluate`."""
    found: list[Results] = []
    dataset = tiny.opened(images, finished)[1]
    assert dataset.test is not None
    for sample in (12, 3):
        asked = tiny.config(images, ("evaluate.tests", ["p"]), ("evaluate.sample", sample))
        parts = {"config": asked, "judged": ("test", dataset.test), "device": torch.device("cpu")}
        context = cast(Context, SimpleNamespace(**parts, progress=Progress()))
        folder = shutil.copytree(finished / "iteration-1" / "student", tmp_path / str(sample))
        robustness.measure(context, {(0, "teacher"): tiny.training(asked, dataset, folder)})
        with np.load(folder / "robustness.npz") as file:
            found.append({name: file[name] for name in file.files})
    rows = stratified(dataset.test.labels, 3, asked.seed)
    assert rows.tolist() != [0, 1, 2]
    for name in ("clean", "p/gaussian_noise/zipf", "p/snow/zipf"):
        assert np.array_equal(found[1][name], found[0][name][rows])


def test_without_a_test_of_corruptions_there_are_no_such_thumbnails(content: dict[str, Any]) -> None:
    assert content["corruptions"] == {}


class Pixels:
    """Images of which each has its number as its grey level."""

    def view_sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.full(len(rows), 8)

    def fetch(self, rows: NDArray[np.int64], side: int, boxes: None) -> torch.Tensor:
        return torch.from_numpy(rows.astype(np.uint8))[:, None, None, None].expand(-1, 3, side, side)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        return [f"{row}.png" for row in rows]


@pytest.mark.parametrize("images", [30, 250])
def test_the_most_confident_mistakes_come_first_with_every_prediction(images: int) -> None:
    rng = np.random.default_rng(images)
    labels = rng.integers(0, 3, images)
    probs = {role: rng.dirichlet(np.ones(3), images).astype(np.float32) for role in ROLES}
    found = mistakes(cast(ImageSet, Pixels()), labels, probs, tiny.CLASSES)
    wrong = np.flatnonzero(probs["student"].argmax(axis=1) != labels)
    assert found["total"] == len(wrong)
    assert len(found["images"]) == min(len(wrong), 100)
    sure = [image["predicted"]["student"][1] for image in found["images"]]
    assert sure == sorted(probs["student"][wrong].max(axis=1).tolist(), reverse=True)[:100]
    for image in found["images"]:
        row = int(image["id"].removesuffix(".png"))
        assert row in wrong and image["truth"] == tiny.CLASSES[labels[row]]
        for role, each in probs.items():
            assert image["predicted"][role] == [tiny.CLASSES[each[row].argmax()], float(each[row].max())]
        thumbnail = Image.open(io.BytesIO(base64.b64decode(image["jpeg"])))
        assert abs(int(np.asarray(thumbnail).mean()) - row) <= 2, "it is the image of this row"


def test_the_mistakes_of_a_run_are_counted_on_its_test_set(finished: Path, content: dict[str, Any]) -> None:
    probs, labels = load_predictions(finished / ROLES["student"] / "predictions-test.npz")
    assert content["mistakes"]["set"] == "test"
    assert content["mistakes"]["total"] == (probs.argmax(axis=1) != labels).sum()
