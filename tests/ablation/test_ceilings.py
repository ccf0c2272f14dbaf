"""Runs on all labels are beside the ablations, which share them by the fingerprint of recipe and images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from tiny import Capture

from noisystudent.ablation.matrix import Overrides, read
from noisystudent.errors import InputError


class Study:
    """Ablations of one cell in one folder."""

    def __init__(self, root: Path, images: Path) -> None:
        self.root, self.images = root, images

    def __call__(self, name: str, **overrides: Any) -> str:
        """Make an ablation whose cell has these overrides; returns its log."""
        recipe = tiny.write_recipe(self.root / "tiny.yaml")
        matrix = self.root / f"{name}.yaml"
        matrix.write_text(yaml.safe_dump({"recipe": str(recipe), "cells": {"full": overrides}}))
        truth = ("--all-labels", self.images / "labeled", self.images / "pool")
        words = ("ablate", matrix, *tiny.flags(self.images), "--out", self.root / name, *truth)
        assert tiny.call(*words) == 0
        return (self.root / name / "ablation.log").read_text()

    def ceilings(self) -> list[Path]:
        return sorted(path for path in (self.root / "ceilings").iterdir() if path.is_dir())

    def top1(self, name: str) -> float:
        cells = json.loads((self.root / name / "ablation.json").read_text())["cells"]
        return float(next(cell["top1"] for cell in cells if cell["name"] == "all labels"))


@pytest.mark.slow
def test_a_ceiling_is_trained_once_for_all_ablations_of_a_recipe(images: Path, tmp_path: Path) -> None:
    study = Study(tmp_path, images)
    first = study("first")
    (ceiling,) = study.ceilings()
    made = "all-labels/seed-0: teacher: resnet8_16, 12 steps"
    assert f"all-labels/seed-0: in {ceiling}\n" in first and made in first
    weights = tiny.digest(ceiling / "iteration-0" / "teacher" / "model.safetensors")
    assert f"all-labels/seed-0: in {ceiling}, done before" in study("again")
    # Another selection or other intervals have the same control, so the same ceiling.
    for name, overrides in (
        ("selection", {"student": {"selection": {"threshold": 0.4}}}),
        ("level", {"evaluate": {"level": 0.9}}),
    ):
        log = study(name, **overrides)
        assert made not in log and study.ceilings() == [ceiling]
        assert study.top1(name) == study.top1("first")
    assert tiny.digest(ceiling / "iteration-0" / "teacher" / "model.safetensors") == weights
    # Another learning rate of the student has another one.
    assert made in study("rate", student={"train": {"lr": 3.0}})
    assert len(study.ceilings()) == 2 and ceiling in study.ceilings()


def test_a_folder_of_the_user_called_ceilings_is_not_touched(
    images: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "ceilings").mkdir()
    (tmp_path / "ceilings" / "plan.txt").write_text("of plaster")
    with pytest.raises(AssertionError):
        Study(tmp_path, images)("first")
    assert "holds files that are not of a run" in tiny.one_line(capsys)
    assert [path.name for path in (tmp_path / "ceilings").iterdir()] == ["plan.txt"]


def test_without_all_labels_there_is_no_folder_of_ceilings(images: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path / "tiny.yaml")
    matrix = tmp_path / "study.yaml"
    matrix.write_text(yaml.safe_dump({"recipe": str(recipe), "cells": {"full": {"students": 0}}}))
    assert tiny.call("ablate", matrix, *tiny.flags(images), "--out", tmp_path / "out") == 0
    assert not (tmp_path / "ceilings").exists()


def test_teachers_that_exist_have_no_row(images: Path, tmp_path: Path) -> None:
    recipe, path = tiny.write_recipe(tmp_path / "tiny.yaml"), tmp_path / "study.yaml"

    def save(cell: dict[str, Any], **keys: Any) -> str:
        path.write_text(yaml.safe_dump({"recipe": str(recipe), "cells": {"full": cell}, **keys}))
        return str(path)

    matrix = read(save({}, common={"teachers": [{"model_from": "run"}]}), Overrides())
    assert [cell.name for cell in matrix.cells] == ["control", "full"]
    with pytest.raises(InputError, match=r"of is 'teacher'; choose one of control, student, student-1"):
        read(save({"of": "teacher", "teachers": [{"model_from": "run"}]}), Overrides())
    all_labels = Overrides(
        flags=[("data.labeled", [str(images / "labeled")]), ("data.test", ["test"])],
        all_labels=(str(images / "pool"),),
    )
    last = read(save({}, common={"teachers": [{"model_from": "run"}]}), all_labels).cells[-1]
    assert (last.kind, last.of) == ("oracle", (0, "teacher"))
