"""What holds of every run: without a pool it is supervised, labels are kept, order does not count."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from PIL import Image

from noisystudent import recipes
from noisystudent.config import Config
from noisystudent.data.sources import listing_fingerprint, open_sources
from noisystudent.errors import Stopped
from noisystudent.inference.load import find_model, load_predictor
from noisystudent.inference.predict import predict
from noisystudent.report import build
from noisystudent.run import status
from noisystudent.run.build import build_graph
from noisystudent.run.rundir import RunDir
from noisystudent.run.stages import Status, state
from noisystudent.run.summary import summarize
from noisystudent.self_training import self_train
from noisystudent.self_training.training import batches


def stop(*_: object) -> None:
    raise Stopped("a signal")


def selection(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "iteration-1" / "evaluation.json").read_text())["selection"]
    return found


def kept(out: Path) -> dict[bytes, tuple[int, float, int]]:
    """Content hash of each selected image to (class, confidence, repeats)."""
    table = pq.read_table(out / "iteration-1" / "selection.parquet").to_pylist()
    return {r["content_hash"]: (r["label"], r["confidence"], r["repeats"]) for r in table if r["repeats"]}


# --- degenerate cases ---


def test_no_students_is_supervised_training(images: Path, finished: Path, tmp_path: Path) -> None:
    tiny.run(tiny.config(images, ("students", 0)), tmp_path)
    assert tiny.weights(tmp_path, "iteration-0/teacher") == tiny.weights(finished, "iteration-0/teacher")
    assert not (tmp_path / "iteration-1").exists()
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["improved"] is None and "supervised" in verdict["sentence"]


def test_a_pool_that_is_not_trusted_is_supervised_training(images: Path, tmp_path: Path) -> None:
    doubtful = [("student.selection.threshold", 0.32), ("student.selection.max_confidence", 0.33)]
    lines = tiny.run(tiny.config(images, *doubtful), tmp_path)
    count = len(tiny.CLASSES) * tiny.PER_CLASS["pool"]
    why = f"no pool image of {count} is kept: {count} are above selection.max_confidence"
    assert f"warning: selection-1: {why}; student 1 learns from the given labels alone" in lines
    student = tiny.weights(tmp_path, "iteration-1/student")
    assert student == tiny.weights(tmp_path, "iteration-1/control")
    assert student != tiny.weights(tmp_path, "iteration-0/teacher"), "it did train, with its own noise"
    assert json.loads((tmp_path / "verdict.json").read_text())["improved"] is not True


def test_a_pool_of_copies_of_val_is_refused(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "pool")
    shutil.copytree(images / "val", tmp_path / "images" / "pool")
    with pytest.raises(Exception, match=r"pool: every image is also in another set"):
        tiny.run(tiny.config(tmp_path / "images"), tmp_path / "run")


# --- what goes in comes out ---


def test_given_labels_never_change(images: Path, finished: Path, tmp_path: Path) -> None:
    for row in pq.read_table(finished / "data" / "manifest.parquet").to_pylist():
        given = -1 if row["set"] == "pool" else tiny.CLASSES.index(row["id"].split("/")[0])
        assert row["label"] == given
    config, dataset = tiny.opened(images, finished)
    truth: dict[bytes, int] = {}
    for kind in range(len(tiny.CLASSES)):
        for pixels in tiny.pictures(kind, tiny.PER_CLASS["labeled"], 0):
            truth[pixels.transpose(2, 0, 1).tobytes()] = kind
    seen = 0
    training = tiny.training(config, dataset, tmp_path)
    assert training.read_pool is not None
    for batch in batches(training, training.read_pool(), 0, training.total_steps):
        assert len(batch.labels) == 6 and len(batch.pool_targets) == 12
        for image, label in zip(batch.images, batch.labels.tolist(), strict=False):
            assert truth[image.numpy().tobytes()] == label
            seen += 1
    assert seen == 6 * training.total_steps == 72


def test_order_and_names_of_the_pool_do_not_count(images: Path, finished: Path, tmp_path: Path) -> None:
    moved = tmp_path / "images"
    shutil.copytree(images, moved)
    files = sorted((moved / "pool").rglob("*.png"))
    shuffled = np.random.default_rng(0).permutation(len(files))
    for number, at in enumerate(shuffled):
        target = moved / "new" / f"f{number % 5}" / f"{number:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        files[at].rename(target)
    shutil.rmtree(moved / "pool")
    (moved / "new").rename(moved / "pool")
    tiny.run(tiny.config(moved, ("data.pool_truth", False)), out := tmp_path / "run")
    # on some processors the last bit of a product depends on the row of the batch it stands in
    sure: dict[bytes, tuple[int, Any, int]] = {
        key: (label, pytest.approx(p, abs=1e-6), n) for key, (label, p, n) in kept(finished).items()
    }
    assert kept(out) == sure
    assert tiny.weights(out, "iteration-1/student") == tiny.weights(finished, "iteration-1/student")


@pytest.mark.parametrize("per_class", [None, 5, 30])
def test_paper_mode_gives_every_class_the_same_total(
    images: Path, finished: Path, tmp_path: Path, per_class: int | None
) -> None:
    out = finished
    if per_class is not None:
        shutil.copytree(finished, tmp_path / "run")
        out = tmp_path / "run"
        tiny.run(tiny.config(images, ("student.selection.per_class", per_class)), out)
    found = selection(out)
    expected = per_class or round(found["above_threshold"] / 3)
    assert [row["total"] for row in found["classes"]] == [expected] * 3
    totals = np.zeros(3, int)
    for label, _, repeats in kept(out).values():
        totals[label] += repeats
    assert totals.tolist() == [expected] * 3


def test_soft_labels_are_the_teachers_probabilities(images: Path, finished: Path) -> None:
    teacher = load_predictor(finished / "iteration-0" / "teacher", "cpu")
    found = predict(teacher, images / "pool")
    parts = sorted((finished / "iteration-1" / "labels").glob("part-*.parquet"))
    assert len(parts) == 3
    stored = [row for part in parts for row in pq.read_table(part).to_pylist()]
    assert [row["id"] for row in stored] == found.ids
    probs = np.array([row["probs"] for row in stored], np.float64)
    np.testing.assert_allclose(probs, found.probs, atol=6e-4)  # half a float16 step below 1
    np.testing.assert_allclose([row["confidence"] for row in stored], found.probs.max(axis=1), rtol=1e-5)
    assert [row["label"] for row in stored] == found.probs.argmax(axis=1).tolist()


# --- run again ---


def contents(out: Path) -> dict[str, str]:
    """Digest of every file a stage makes; a log, a page and the lock are no results."""
    passing = {"run.log", "environment.json", "config.yaml", "schedule.json", "report.html", ".noisystudent"}
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in passing)
    names = {str(path.relative_to(out)): path for path in files if "tensorboard" not in path.parts}
    return {name: tiny.digest(path) for name, path in sorted(names.items())}


def to_do(config: Config, out: Path) -> list[str]:
    graph = build_graph(config, listing_fingerprint(open_sources(config.data)), RunDir(out))
    return [stage.name for stage in graph.stages() if state(stage).status is not Status.DONE]


def test_a_finished_run_is_skipped(images: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = contents(out)
    assert to_do(tiny.config(images), out) == []
    lines = tiny.run(tiny.config(images), out)
    stages = ["data", "teacher", "labels-1", "selection-1", "student-1", "control-1", "judgement"]
    assert [line for line in lines if line.endswith("skipped")] == [
        f"{name}: done before, skipped" for name in stages
    ]
    assert contents(out) == before


def test_another_threshold_redoes_what_follows_from_it_and_comes_back(
    images: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = contents(out)
    strict = tiny.config(images, ("student.selection.threshold", 0.6))
    assert to_do(strict, out) == ["selection-1", "student-1", "judgement"]
    lines = tiny.run(strict, out)
    skipped = [line.partition(":")[0] for line in lines if line.endswith("done before, skipped")]
    assert skipped == ["data", "teacher", "labels-1", "control-1"]
    moved = [line for line in lines if "made from other inputs" in line]
    assert [line.partition(" (")[2].partition(")")[0] for line in moved] == [
        "student-1",
        "selection",
        "config",
    ]
    assert selection(out)["kept"] < selection(finished)["kept"]
    assert tiny.weights(out, "iteration-1/student") != tiny.weights(finished, "iteration-1/student")
    assert tiny.weights(out, "iteration-1/control") == tiny.weights(finished, "iteration-1/control")

    again = tiny.run(tiny.config(images), out)
    back = [line.partition(":")[0] for line in again if "moved back from superseded" in line]
    assert back == ["selection-1", "student-1", "judgement"]
    after = {name: value for name, value in contents(out).items() if not name.startswith("superseded/")}
    assert after == before
    assert not list(out.rglob("targets.npy"))  # copied for a training, gone with it


def test_a_changed_run_that_is_stopped_has_no_files_of_the_old_configuration(
    images: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before, run = contents(out), RunDir(out)
    other = tiny.config(images, ("student.selection.threshold", 0.6))
    with pytest.raises(Stopped):
        self_train(other, out, take_over=stop)
    assert recipes.load(str(run.config)) == other
    assert find_model(out) == run.iteration(0).model("teacher").weights
    assert not run.iteration(1).selection.exists() and not run.verdict.exists()
    assert summarize(run).verdict is None

    tiny.run(tiny.config(images), out)
    after = {name: value for name, value in contents(out).items() if not name.startswith("superseded/")}
    assert after == before


def test_more_pool_images_train_no_teacher_and_no_control_again(
    images: Path, finished: Path, tmp_path: Path
) -> None:
    more, out = shutil.copytree(images, tmp_path / "images"), shutil.copytree(finished, tmp_path / "run")
    Image.fromarray(tiny.pictures(0, 1, seed=99)[0]).save(more / "pool" / "blue" / "99.png")
    config = tiny.config(more)
    assert to_do(config, out) == ["data", "labels-1", "selection-1", "student-1", "judgement"]
    tiny.run(config, out)
    tiny.run(config, tmp_path / "new")
    for model in ("iteration-0/teacher", "iteration-1/student", "iteration-1/control"):
        assert tiny.weights(out, model) == tiny.weights(tmp_path / "new", model)


def test_fields_that_change_no_result_redo_nothing(images: Path, finished: Path) -> None:
    neutral = [("teacher.train.log_steps", 7), ("student.train.checkpoint_steps", 3), ("data.workers", 1)]
    assert to_do(tiny.config(images, *neutral), finished) == []
    assert to_do(tiny.config(images, ("seed", 1)), finished)[0] == "data"
    assert to_do(tiny.config(images, ("evaluate.resamples", 7)), finished) == ["judgement"]


@pytest.mark.slow
def test_a_window_of_the_whole_pool_is_no_window(images: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, out := tmp_path / "run")
    given = tiny.config(images, ("student.pool_window", 1_000), ("data.plane", "streamed"))
    assert to_do(tiny.config(images, ("student.pool_window", 1_000)), out) == ["student-1", "judgement"]
    tiny.run(given, out)
    windows = tiny.config(images, ("student.pool_window", 8), ("data.plane", "streamed"))
    weights = tiny.weights(out, "iteration-1/student")
    tiny.run(windows, out)
    assert tiny.weights(out, "iteration-1/student") != weights, "the order is another one"
    tiny.run(tiny.config(images, ("data.plane", "streamed")), out)
    assert tiny.weights(out, "iteration-1/student") == weights


@pytest.mark.slow
def test_fewer_students_leave_the_others_on_the_shelf(images: Path, tmp_path: Path) -> None:
    """A run shows the students of its configuration, not those of an earlier one."""
    out = tmp_path / "run"
    tiny.run(tiny.config(images, ("students", 2), ("student.train.steps", 8)), out)
    second = find_model(out)
    assert "student 2" in build(out).read_text()
    assert second == out / "iteration-2" / "student" / "model.safetensors"
    two = contents(out)
    tiny.run(tiny.config(images, ("student.train.steps", 8)), out)
    assert find_model(out) == out / "iteration-1" / "student" / "model.safetensors"
    assert {row[0] for row in status.scores(RunDir(out))} == {"teacher", "student-1", "control-1"}
    assert not any(row[0].endswith("-2") for row in status.recorded(RunDir(out)))
    assert "student 2" not in build(out).read_text()
    tiny.run(tiny.config(images, ("students", 2), ("student.train.steps", 8)), out)
    assert find_model(out) == second
    evaluation = "iteration-2/evaluation.json"
    assert contents(out)[evaluation] == two[evaluation]
