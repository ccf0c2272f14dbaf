"""The trainings of a run are announced with their lengths before the first one begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tiny

from noisystudent.run.rundir import ModelDir, RunDir


def lengths(run: Path) -> dict[str, dict[str, Any]]:
    stages = json.loads(RunDir(run).schedule.read_text())["stages"]
    return {one["name"]: one["training"] for one in stages if one["training"] is not None}


def steps_of(run: Path, model: str) -> int:
    """The last step that a training has logged."""
    return int(json.loads(ModelDir(run / model).metrics.read_text().splitlines()[-1])["step"])


def test_every_training_is_announced_before_the_first_begins(finished: Path) -> None:
    lines = [line.split("  ", 1)[1] for line in (finished / "run.log").read_text().splitlines()]
    at = lines.index("to come: 6 of 7 stages, 3 of them trainings; 36 steps with 504 images in all")
    assert lines[at + 1 : at + 4] == [
        "  teacher: 12 steps, 72 images, resnet8_16, 16 pixels",
        "  student-1: 12 steps, 216 images, resnet8_16, 16 pixels",
        "  control-1: 12 steps, 216 images, resnet8_16, 16 pixels",
    ]
    begun = next(place for place, line in enumerate(lines) if line.startswith("teacher: resnet8_16"))
    assert at + 3 < begun


def test_a_resumed_run_announces_what_is_left(finished: Path, images: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    assert not any("to come" in line for line in tiny.run(tiny.config(images), out))
    lines = tiny.run(tiny.config(images, ("students.0.train.steps", 4)), out)
    assert "to come: 3 of 7 stages, 2 of them trainings; 8 steps with 144 images in all" in lines
    assert {name: one["steps"] for name, one in lengths(out).items()} == {
        "teacher": 12,
        "student-1": steps_of(out, "iteration-1/student"),
        "control-1": steps_of(out, "iteration-1/control"),
    }


def test_a_length_that_the_selection_gives_is_known_after_it(images: Path, tmp_path: Path) -> None:
    lines = tiny.run(tiny.config(images, ("student.train.pool_epochs", 2)), tmp_path)
    at = next(place for place, line in enumerate(lines) if line.startswith("to come"))
    assert lines[at].endswith("; 12 steps with 72 images in all, and those that the selection gives")
    assert lines[at + 2] == "  student-1: steps as the selection gives, resnet8_16, 16 pixels"
    assert lengths(tmp_path)["student-1"]["steps"] == steps_of(tmp_path, "iteration-1/student")
    assert lengths(tmp_path)["control-1"]["steps"] == steps_of(tmp_path, "iteration-1/control")
