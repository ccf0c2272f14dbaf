"""A run stops before a model that went wrong labels or trains another, and names classes that it lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny
import torch

from noisystudent.errors import RunError
from noisystudent.pseudo_label.encode import Encoder

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


def test_a_student_worse_than_chance_is_not_judged(images: Path, tmp_path: Path) -> None:
    line = stopped(images, tmp_path, ("student.train.lr", 150), ("seed", 8))
    assert line.startswith("student-1: ") and "worse than chance" in line and "train.lr" in line
    assert not (tmp_path / "verdict.json").exists()


def test_equal_confidences_train_no_student(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "encode", lambda _, predict, images: torch.full((len(images), 3), 1 / 3))
    line = stopped(images, tmp_path)
    assert line.startswith("selection-1: all 42 pool images have the confidence 0.333")
    assert "train.lr" in line
    assert not (tmp_path / "iteration-1" / "student").exists()


def test_a_class_that_lost_every_image_is_named_at_the_selection(images: Path, tmp_path: Path) -> None:
    given = tiny.config(images, ("student.selection.threshold", 0.9))
    lines = tiny.run(given, tmp_path)
    (warning,) = [line for line in lines if line.startswith("warning: selection-1: no pool image")]
    assert (
        re.search("1 of 3 classes: (red|green|blue); ", warning) and "decrease selection.threshold" in warning
    )
    assert lines.index(warning) < next(at for at, line in enumerate(lines) if line.startswith("student-1:"))
    assert warning in tiny.run(given, tmp_path), "a second call prints it, too"


def test_the_command_select_names_lost_classes(images: Path, tmp_path: Path, capsys: Capture) -> None:
    given = tiny.config(images)
    assert not [line for line in tiny.run(given, tmp_path / "run") if "no pool image was selected" in line]
    labels, out = tmp_path / "run" / "iteration-1" / "labels", tmp_path / "selected.parquet"
    assert tiny.call("select", labels, "--out", out, "--selection.threshold", 0.9) == 0
    line = tiny.one_line(capsys)
    assert re.search("warning: no pool image was selected of 1 of 3 classes: [012]; ", line)
