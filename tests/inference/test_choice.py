"""`predict` and `export` use the last student, unless val shows that another model of the run is better."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from tiny import Capture

from noisystudent import NoisyStudent
from noisystudent.config import EvaluateConfig
from noisystudent.inference.load import find_model
from noisystudent.metrics import paired
from noisystudent.metrics.best import best
from noisystudent.metrics.scores import save_predictions

CONFIG = EvaluateConfig()


def right(count: int, of: int = 400) -> NDArray[np.bool_]:
    return np.arange(of) < count


def test_the_most_accurate_of_those_that_are_clearly_better() -> None:
    hits = {"teacher": right(330), "student-1": right(340), "student-2": right(300), "control-2": right(302)}
    name, reason = best(hits, "student-2", CONFIG, 0)
    assert name == "student-1"
    span = paired.compare(hits["student-1"], hits["student-2"], CONFIG, 0)
    assert reason == (
        "on val it is better than student-2 by 10.00 points (95% interval"
        f" {100 * span['low']:+.2f} to {100 * span['high']:+.2f})"
    )


def test_a_higher_score_within_the_noise_changes_nothing() -> None:
    hits = {"teacher": right(200), "student-1": right(303), "student-2": right(300)}
    name, reason = best(hits, "student-2", CONFIG, 0)
    assert name == "student-2"
    assert reason == "the 400 images of val show no difference from student-1: the last student is used"


def test_the_last_student_is_the_best_or_alone() -> None:
    hits = {"teacher": right(200), "student-1": right(300)}
    assert best(hits, "student-1", CONFIG, 0) == ("student-1", "on val it is the best of 2 models")
    assert best({"teacher": right(200)}, "teacher", CONFIG, 0) == ("teacher", "")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def give(run: Path, model: str, count: int) -> None:
    """Predictions of a model on 100 images of val, of which `count` are right."""
    labels = np.arange(100) % 3
    probs = np.eye(3, dtype=np.float32)[np.where(right(count, 100), labels, (labels + 1) % 3)]
    save_predictions(run / model / "predictions-val.npz", probs, labels)


@pytest.mark.parametrize(
    "counts, chosen",
    [
        ((50, 90, 50), "iteration-1/student"),
        ((90, 50, 60), "iteration-0/teacher"),
        ((50, 60, 90), "iteration-1/control"),
        ((52, 50, 53), "iteration-1/student"),
    ],
)
def test_all_commands_use_the_same_model(
    run: Path, images: Path, tmp_path: Path, capsys: Capture, counts: tuple[int, ...], chosen: str
) -> None:
    for model, count in zip(
        ("iteration-0/teacher", "iteration-1/student", "iteration-1/control"), counts, strict=True
    ):
        give(run, model, count)
    weights = run / chosen / "model.safetensors"
    assert find_model(run) == weights
    assert NoisyStudent.load(run)._weights == weights.read_bytes()
    words = (
        ("predict", run, images / "test"),
        ("evaluate", run, "--data", images / "test"),
        ("export", run, "--out", tmp_path / "out.safetensors"),
    )
    for command in words:
        assert tiny.call(*command) == 0
        lines = capsys.readouterr().err.splitlines()
        assert sum(f"({weights}); " in line for line in lines) == 1, lines
    assert tiny.call("predict", run / "iteration-1" / "student", images / "test") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"({run}/iteration-1/student/model.safetensors)" in line, "a model that is named is used"


def test_predictions_that_are_missing_or_damaged_are_not_compared(run: Path) -> None:
    give(run, "iteration-0/teacher", 90)
    give(run, "iteration-1/student", 50)
    (run / "iteration-0" / "teacher" / "predictions-val.npz").write_bytes(b"damaged")
    (run / "iteration-1" / "control" / "predictions-val.npz").unlink()
    assert find_model(run) == run / "iteration-1" / "student" / "model.safetensors"
    (run / "iteration-1" / "student" / "predictions-val.npz").unlink()
    assert find_model(run) == run / "iteration-1" / "student" / "model.safetensors"


def test_the_verdict_and_the_report_name_it(finished: Path) -> None:
    named = json.loads((finished / "verdict.json").read_text())["best"]
    assert named["model"] == "student-1" and named["reason"].startswith("val has 12 images, too few")
    assert f"Predict and export use student-1: {named['reason']}." in (finished / "report.html").read_text()
