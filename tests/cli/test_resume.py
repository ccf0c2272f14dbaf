"""`run --out RUN` alone resumes a run: its config.yaml has the images and the settings of the first call."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import yaml
from tiny import Capture, output, refused

from noisystudent import recipes
from noisystudent.run.rundir import RunDir


@pytest.fixture
def interrupted(finished: Path, tmp_path: Path) -> Path:
    """A run of one student that was killed before its student was trained."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for path in (out / "iteration-1" / "student", out / "iteration-1" / "control"):
        shutil.rmtree(path)
    for path in (out / "verdict.json", out / "verdict.stage.json", out / "report.html"):
        path.unlink()
    return out


def test_a_run_is_resumed_by_its_folder_alone(
    interrupted: Path, finished: Path, images: Path, capsys: Capture
) -> None:
    lines = output(capsys, "run", "--out", interrupted).splitlines()
    assert lines[0] == (
        f"resuming {interrupted} as its config.yaml says: labelled {images / 'labeled'},"
        f" pool {images / 'pool'}, students 1, seed 0"
    )
    assert "teacher: done before, skipped" in lines
    for model in ("iteration-0/teacher", "iteration-1/student", "iteration-1/control"):
        assert tiny.weights(interrupted, model) == tiny.weights(finished, model)
    assert (interrupted / "config.yaml").read_text() == (finished / "config.yaml").read_text()


def test_what_is_given_again_overrides_what_is_recorded(
    interrupted: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.unmeasured(monkeypatch)
    before = recipes.load(str(interrupted / "config.yaml"))
    same = output(capsys, "plan", "--out", interrupted)
    assert output(capsys, "plan", "--out", interrupted, "--students", "1") == same
    plan = output(capsys, "plan", "--out", interrupted, "--students", "2", "--seed", "0")
    rows = tiny.table(plan)
    assert rows["teacher"].startswith("done") and rows["student-2"].startswith("to do")
    output(capsys, "run", "--out", interrupted, "--student.selection.threshold", "0.4")
    after = recipes.load(str(interrupted / "config.yaml"))
    assert after.students[0].selection.threshold == 0.4 != before.students[0].selection.threshold
    assert (after.data, after.teacher, after.seed) == (before.data, before.teacher, before.seed)


def test_a_recipe_that_is_named_is_used(
    interrupted: Path, recipe: Path, images: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.unmeasured(monkeypatch)
    words = ("plan", recipe, *tiny.flags(images), "--out", interrupted, "--seed", "1")
    assert tiny.table(output(capsys, *words))["teacher"].startswith("to redo: seed changed")
    message = refused(capsys, 2, "run", recipe, "--out", interrupted)
    assert "data.labeled is empty; give --labeled" in message, "a recipe that is named has no images"


def test_a_folder_without_a_run_is_no_run(tmp_path: Path, finished: Path, capsys: Capture) -> None:
    """A config.yaml of the user is not read."""
    (tmp_path / "mine").mkdir()
    shutil.copy(finished / "config.yaml", tmp_path / "mine" / "config.yaml")
    for name in ("mine", "none"):
        line = refused(capsys, 2, "run", "--out", tmp_path / name)
        assert line.endswith(f"{name}, no run yet; check the name, or give --labeled to begin a new run")


@pytest.mark.parametrize("text", ["data: [", "techer: 3", "- a"])
def test_a_damaged_configuration_is_named_with_the_way_out(
    interrupted: Path, recipe: Path, images: Path, capsys: Capture, text: str
) -> None:
    (interrupted / "config.yaml").write_text(text)
    message = refused(capsys, 2, "run", "--out", interrupted)
    assert f"{interrupted}/config.yaml" in message and "name a recipe" in message
    assert tiny.call("run", recipe, *tiny.flags(images), "--out", interrupted) == 0


def test_students_are_added_to_a_teacher_by_the_recipe(
    images: Path, recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    labels = ("--labeled", images / "labeled", "--val", images / "val")
    out = ("--out", tmp_path / "run")
    output(capsys, "train", recipe, *labels, *out)
    assert "students 0" in output(capsys, "run", *out), "as it was"
    message = refused(capsys, 2, "run", *labels, "--unlabeled", images / "pool", *out)
    assert "has no students" in message and "`noisystudent run folder`" in message
    message = refused(capsys, 2, "run", "--students", "1", "--unlabeled", images / "pool", *out)
    assert "there is no student" in message and "name a recipe" in message
    output(capsys, "run", recipe, *labels, "--unlabeled", images / "pool", *out)
    assert RunDir(tmp_path / "run").student_count() == 1


def test_a_run_with_students_does_not_become_a_teacher(interrupted: Path, capsys: Capture) -> None:
    before = (interrupted / "config.yaml").read_bytes()
    message = refused(capsys, 2, "train", "--out", interrupted)
    assert f"`noisystudent run --out {interrupted}`" in message
    assert (interrupted / "config.yaml").read_bytes() == before


def test_a_run_on_images_in_memory_needs_them_again(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    message = refused(capsys, 2, "demo", "--out", out)
    assert f"`noisystudent run --out {out}`" in message
    config = yaml.safe_load((out / "config.yaml").read_text())
    config["data"] |= {"labeled": [], "unlabeled": [], "val": [], "test": []}
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    message = refused(capsys, 2, "run", "--out", out)
    assert f"`noisystudent demo --out {out}`" in message
