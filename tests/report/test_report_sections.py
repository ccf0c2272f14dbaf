"""Sections of the report about images, iterations, time and files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_run
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from html_page import page, section

from noisystudent.metrics.classification import reliability
from noisystudent.metrics.precision import wilson
from noisystudent.metrics.scores import load_predictions
from noisystudent.metrics.temperature import scaled
from noisystudent.report import build
from noisystudent.report.progress import changes, current, duration, facts, stages
from noisystudent.report.read import read_run
from noisystudent.robustness.measures import CORRUPTIONS
from noisystudent.run.record import read_record, write_record
from noisystudent.run.rundir import RunDir


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run.write_run(tmp_path_factory.mktemp("runs") / "full", images=120)


@pytest.fixture
def run(full: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(full, tmp_path / "run"))


@pytest.mark.parametrize("field", ["model_from", "labels_from"])
def test_a_teacher_that_exists_has_the_name_of_its_file(run: Path, field: str) -> None:
    """The network in its entry is that of other teachers."""
    read = read_run(RunDir(run))
    existing = {field: "models/their.onnx", "model": {"name": "resnet18"}}
    assert facts(replace(read, fields={"teachers": [existing]}))[0] == "teacher their.onnx"
    assert facts(replace(read, fields={"teacher": existing | {field: None}}))[0] == "teacher resnet18"


def record(run: Path, path: Path, name: str, seconds: float | None) -> None:
    status = "running" if seconds is None else "done"
    content: dict[str, Any] = {"name": name, "fingerprint": "0", "status": status, "inputs": {}}
    write_record(run / path, content | {"seconds": seconds})


def test_a_mistake_has_its_file_and_what_each_model_predicts(full: Path) -> None:
    content = json.loads((full / "iteration-3" / "gallery.json").read_text())["mistakes"]
    report = section(full, "mistakes")
    assert "34 images of test; here are the 9" in report.text
    assert sum(tag == "img" for tag, _ in report.tags) == len(content["images"])
    for image in content["images"]:
        assert image["id"].rpartition("/")[2] in report.text
        said = {a.get("class") for tag, a in report.tags if tag == "span" and "dot" in (a.get("class") or "")}
        assert said == {f"dot {role}" for role in image["predicted"]}


def test_a_thumbnail_of_the_pool_has_what_the_gallery_is_filtered_by(full: Path) -> None:
    shown = [a for tag, a in section(full, "gallery").tags if tag == "figure"]
    assert len(shown) == 3 * 10 * 12
    assert {a["data-reason"] for a in shown} == {"kept", "kept, marked as junk", "below threshold"}
    for attributes in shown:
        kept = float(attributes["data-confidence"] or 0) >= 0.3
        assert attributes["class"] == ("kept" if kept else "out")
        assert 0 < float(attributes["data-agreement"] or 0) <= 1


def test_every_class_of_the_gallery_can_be_chosen(full: Path) -> None:
    """An option without a value stands for its text with single spaces; the name of a class may have more."""
    tags = section(full, "gallery").tags
    groups = {attributes["data-class"] for _, attributes in tags if "data-class" in attributes}
    assert groups and groups <= {attributes.get("value") for tag, attributes in tags if tag == "option"}


def test_the_page_of_many_large_thumbnails_stays_small(run: Path) -> None:
    classes = [f"class {i}" for i in range(100)]
    for index in (1, 2, 3):
        path = run / f"iteration-{index}" / "gallery.json"
        images = [
            {"id": f"{i}.jpg", "confidence": 0.9, "kept": True, "truth": None, "jpeg": "A" * 8000}
            for i in range(14)
        ]
        fake_run.write_json(path, {"classes": [{"class": name, "images": images} for name in classes]})
    html = build(run).read_text(encoding="utf-8")
    assert len(html) < 8_000_000
    first = html[html.index('class="gallery"') :]
    assert first.count("<h3>class ") == 100, "the last iteration keeps some images of every class"
    assert all(f'data-class="{name}"' in first for name in classes)


def test_labels_and_selections_of_iterations_are_compared(run: Path) -> None:
    rng = np.random.default_rng(0)
    kept, labels = {}, {}
    for index in (1, 2, 3):
        kept[index], labels[index] = rng.integers(0, 3, 500), rng.integers(0, 4, 500)
        columns = {"label": pa.array(labels[index], pa.int32()), "repeats": pa.array(kept[index], pa.int32())}
        more = {"confidence": pa.array(np.ones(500, np.float32)), "reason": pa.array(["kept"] * 500)}
        pq.write_table(pa.table(columns | more), RunDir(run).iteration(index).selection)
    config = "students:\n- {train: {steps: 5}}\n- {train: {steps: 5}}\n- {train: {steps: 9, lr: 0.1}}\n"
    (run / "config.yaml").write_text(config)
    found = changes(read_run(RunDir(run)))
    assert [row["index"] for row in found] == [2, 3]
    for row in found:
        now, before = (row["index"], row["index"] - 1)
        assert row["images"] == 500
        assert row["relabeled"] == (labels[now] != labels[before]).sum()
        # Conservation: what came minus what went is the difference of the kept images.
        assert row["added"] - row["removed"] == (kept[now] > 0).sum() - (kept[before] > 0).sum()
    assert found[0]["fields"] == []
    assert found[1]["fields"] == [("train.steps", "5", "9"), ("train.lr", "none", "0.1")]
    assert "train.steps: 5 → 9" in section(run, "changes").text


def test_the_dotted_line_is_the_last_student_at_its_temperature(run: Path) -> None:
    path = run / "iteration-3" / "evaluation.json"
    content = json.loads(path.read_text())
    content["calibrated"] = {"student": {"temperature": 1.7, "test": {"ece": 0.01}}}
    fake_run.write_json(path, content)
    probs, labels = load_predictions(RunDir(run).iteration(3).model("student").predictions("test"))
    expected = reliability(scaled(probs, 1.7), labels, 15)
    (line,) = (t for t in page(run).figures["reliability"]["data"] if t.get("line", {}).get("dash") == "dot")
    assert line["name"] == "student 3, calibrated"
    assert line["y"] == pytest.approx(expected.accuracy[expected.count > 0], abs=1e-4)
    assert sum(line["customdata"]) == len(labels)


def test_gains_are_accuracies_by_class_and_their_mean_is_top1(full: Path) -> None:
    report = page(full)
    for trace in report.figures["gains"]["data"][1:]:
        role, iteration = (*trace["name"].split(), "0")[:2]
        folder = RunDir(full).iteration(int(iteration)).model(role)
        probs, labels = load_predictions(folder.predictions("test"))
        # Every class has as many images.
        assert np.mean(trace["x"]) == pytest.approx(float((probs.argmax(axis=1) == labels).mean()))
    matrices = [report.figures[f"confusion-{at}"]["data"][0]["text"] for at in range(3)]
    assert all(sum(int(n or 0) for row in matrix for n in row) == 120 for matrix in matrices)


def test_the_bars_of_an_accuracy_are_wilsons_interval(full: Path) -> None:
    counts = json.loads((full / "data" / "dataset.json").read_text())["counts"]
    for trace in page(full).figures["accuracy"]["data"]:
        images = counts[trace["name"].rpartition(" ")[2]]
        bars = trace["error_y"]
        for share, up, down in zip(trace["y"], bars["array"], bars["arrayminus"], strict=True):
            low, high = wilson(round(share * images), images, 0.95)
            assert (share - down, share + up) == pytest.approx((low, high), abs=1e-5)


def test_the_times_of_the_stages_sum_to_the_whole(run: Path) -> None:
    for name, seconds in (("teacher", 60.0), ("student", 300.0)):
        index = 0 if name == "teacher" else 1
        record(run, Path(f"iteration-{index}/{name}/stage.json"), f"{name}-{index}", seconds)
    record(run, Path("iteration-2/student/stage.json"), "student-2", None)
    content = read_run(RunDir(run))
    found = stages(content)
    assert found is not None
    assert [row[0] for row in found["rows"]] == ["teacher-0", "student-1"]
    assert (found["total"], found["longest"]) == (duration(360), ("student-1", 300 / 360))
    assert current(content) == "It is at student-2."
    assert "6 min 0 s in all" in section(run, "time").text


def test_the_memory_of_a_stage_and_its_images_stand_beside_its_time(run: Path) -> None:
    training = {"model": "resnet8_16", "resolution": 16, "steps": 200, "images": 25_600}
    planned = {"name": "teacher", "fingerprint": "0", "training": training}
    RunDir(run).schedule.write_text(json.dumps({"stages": [planned]}))
    record(run, Path("iteration-0/teacher/stage.json"), "teacher", 60.0)
    older = read_record(run / "iteration-0/teacher/stage.json") or {}
    peaks = {"resident": 3 * 2**30, "gpu": 2**20}
    write_record(run / "iteration-1/student/stage.json", older | {"name": "student-1", "memory": peaks})
    found = stages(read_run(RunDir(run)))
    assert found is not None
    assert [(row[0], *row[-2:]) for row in found["rows"]] == [
        ("teacher", "25,600 images", ""),
        ("student-1", "", "3.0 GiB, GPU 1.0 MiB"),
    ]
    assert all(words in section(run, "time").text for words in ("25,600 images", "3.0 GiB, GPU 1.0 MiB"))


def test_a_report_shows_an_image_under_each_corruption(run: Path) -> None:
    assert "One image under each corruption" not in section(run, "robustness").text
    path = run / "iteration-3" / "gallery.json"
    content = json.loads(path.read_text())
    jpeg = content["mistakes"]["images"][0]["jpeg"]
    strip = {name: dict.fromkeys(("1", "3", "5"), jpeg) for name in CORRUPTIONS}
    fake_run.write_json(path, content | {"corruptions": {"clean": jpeg, "corrupted": strip}})
    html = build(run).read_text()
    assert all(f'alt="{name}, severity {at}"' in html for name in CORRUPTIONS for at in (1, 3, 5))
    assert "at severity 1, 3, 5" in section(run, "robustness").text
    assert len(html) < 8e6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.42, "0.4 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3725, "1 h 2 min"), (360_000, "100 h 0 min")),
        *((9.96, "10 s"), (59.7, "1 min 0 s"), (119.7, "2 min 0 s"), (3599.8, "1 h 0 min")),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_missing_is_named_with_what_to_do(run: Path) -> None:
    for index in range(4):
        path = run / f"iteration-{index}" / "evaluation.json"
        content = json.loads(path.read_text())
        fake_run.write_json(path, content | {"robustness": {}})
    advice = "Robustness was not measured. Add --evaluate.tests c"
    text = page(run).text
    assert advice in text and "These sections have no files" not in text
    (run / "config.yaml").write_text("evaluate: {tests: [c]}\nstudents: [{}, {}, {}]\n")
    (run / "verdict.json").unlink()
    text = page(run).text
    assert advice not in text
    assert "These sections have no files yet: changes, robustness, explorer, time." in text


def test_every_link_leads_to_a_file_of_the_run(full: Path) -> None:
    links = [a["href"] or "" for tag, a in section(full, "files").tags if tag == "a"]
    assert {"verdict.json", "data/ledger.csv", "iteration-3/student/metrics.jsonl"} <= set(links)
    assert all((full / link).is_file() for link in links)
