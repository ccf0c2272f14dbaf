"""A run stops before a model that went wrong labels or trains another, and names classes that it lost."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from noisystudent.errors import RunError
from noisystudent.metrics.scores import Predictions
from noisystudent.pseudo_label.encode import Encoder
from noisystudent.self_training import train_stage
from noisystudent.self_training.training import Training

Capture = pytest.CaptureFixture[str]


def stopped(images: Path, out: Path, *fields: tuple[str, object]) -> str:
    """The line of a run that fails; a second call ends with the same one."""
    given = tiny.config(images, *fields)
    with pytest.raises(RunError) as first:
        tiny.run(given, out)
    with pytest.raises(RunError) as second:
        tiny.run(given, out)
    assert str(first.value) == str(second.value)
    return str(first.value)


@pytest.mark.parametrize("lr", [1e4, 1e6])
@pytest.mark.parametrize(
    ("stage", "field"),
    [("teacher", "teacher.train.lr"), ("teacher-finetune", "teacher.finetune.lr")],
)
def test_a_model_that_diverges_labels_nothing(
    images: Path, tmp_path: Path, stage: str, field: str, lr: float
) -> None:
    finetuning = [("teacher.finetune.steps", 4)] if "finetune" in stage else []
    line = stopped(images, tmp_path, *finetuning, (field, lr))
    assert line.startswith(f"{stage}: ") and " in steps " in line and f"decrease {'train.lr'}" in line
    assert not (tmp_path / "iteration-1").exists()


def test_an_existing_teacher_that_has_diverged_is_named(images: Path, finished: Path, tmp_path: Path) -> None:
    source, path = finished / "iteration-0/teacher/model.safetensors", tmp_path / "diverged.safetensors"
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: tensor * torch.nan for name, tensor in load_file(source).items()}, path, metadata)
    line = stopped(images, tmp_path / "run", ("teachers", [{}, {"model_from": str(path)}]))
    assert line.startswith(f"teachers: model_from {path}: the model's output is not finite")


def test_a_student_worse_than_chance_is_not_judged(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 400 val images the teacher is right everywhere, and the student on 60 of them."""

    def predicted(training: Training, *_: object) -> Predictions:
        probs, labels = worse_students(training)
        if training.folder.path.name == "student":
            wrong = np.arange(400) >= 60
            probs = np.where(wrong[:, None], np.roll(np.eye(3, dtype=np.float32)[labels], 1, axis=1), probs)
        return Predictions(probs, labels)

    monkeypatch.setattr(train_stage, "predictions", predicted)
    line = stopped(images, tmp_path)
    assert line.startswith("student-1: ") and "worse than chance" in line and "train.lr" in line
    assert not (tmp_path / "verdict.json").exists()


def test_equal_confidences_train_no_student(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # energy, and three probabilities
    monkeypatch.setattr(Encoder, "encode", lambda _, predict, images: torch.full((len(images), 4), 1 / 3))
    line = stopped(images, tmp_path)
    assert line.startswith("selection-1: all 42 pool images have the confidence 0.333")
    assert "train.lr" in line
    assert not (tmp_path / "iteration-1" / "student").exists()


def test_a_class_that_lost_every_image_is_named_at_the_selection(images: Path, tmp_path: Path) -> None:
    given = tiny.config(images, ("student.selection.threshold", 0.9))
    lines = tiny.run(given, tmp_path)
    (warning,) = [line for line in lines if line.startswith("warning: selection-1: no pool image")]
    assert (
        re.search("1 of 3 classes is kept: (red|green|blue); ", warning)
        and "decrease selection.threshold" in warning
    )
    assert lines.index(warning) < next(at for at, line in enumerate(lines) if line.startswith("student-1:"))
    assert warning in tiny.run(given, tmp_path), "a second call prints it, too"


def test_the_command_select_names_lost_classes(images: Path, tmp_path: Path, capsys: Capture) -> None:
    given = tiny.config(images)
    assert not [line for line in tiny.run(given, tmp_path / "run") if "classes is kept" in line]
    labels, out = tmp_path / "run" / "iteration-1" / "labels", tmp_path / "selected.parquet"
    assert tiny.call("select", labels, "--out", out, "--selection.threshold", 0.9) == 0
    line = tiny.one_line(capsys)
    assert re.search("warning: no pool image of 1 of 3 classes is kept: (red|green|blue); ", line)


def worse_students(training: Training, *_: object) -> Predictions:
    """On 400 val images the teacher is right everywhere, and each student on 60 in a hundred."""
    labels = np.arange(400) % 3
    wrong = np.arange(400) % 5 < (0 if training.folder.path.name == "teacher" else 2)
    sure = np.linspace(0.5, 0.9, 400, dtype=np.float32)[:, None]
    return Predictions(np.where(np.eye(3)[(labels + wrong) % 3] > 0, sure, (1 - sure) / 2), labels)


def test_a_student_that_is_worse_than_its_teacher_labels_nothing_unless_told_to(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_stage, "predictions", worse_students)
    line = stopped(images, tmp_path, ("students", 2))
    assert line.startswith("student-1: worse than its teacher by 40.0 points on 400 val images (p = ")
    assert line.endswith("--keep-going takes it as the next teacher anyway")
    assert not (tmp_path / "iteration-2").exists()
    lines = tiny.run(tiny.config(images, ("students", 2), ("keep_going", True)), tmp_path)
    assert [text for text in lines if text.startswith("warning: student-1: worse than its teacher")]
    assert (tmp_path / "verdict.json").exists(), "student-2 is as good as its teacher, and it labels nothing"
