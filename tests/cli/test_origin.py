"""Which model of a run was used is said on standard error, and standard output stays clean."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
from tiny import Capture

from noisystudent.run.record import read_record, write_record


def printed(capsys: Capture, *words: object) -> tuple[str, list[str]]:
    """Standard output and the lines on standard error of a command that succeeds."""
    capsys.readouterr()
    assert tiny.call(*words) == 0
    out, err = capsys.readouterr()
    return out, err.splitlines()


@pytest.mark.parametrize(
    "path, name",
    [("", "student-1"), ("iteration-0/teacher", "teacher"), ("iteration-1/control", "control-1")],
)
def test_predict_names_its_model(finished: Path, images: Path, capsys: Capture, path: str, name: str) -> None:
    out, (line,) = printed(capsys, "predict", finished / path, images / "test", "--format", "json")
    assert len(json.loads(out)) == 12
    role = name.split("-")[0]
    folder = finished / f"iteration-{0 if role == 'teacher' else 1}" / role
    why = "; val has 12 images, too few to choose a model: the last student is used"
    chosen = why if name == "student-1" else ""
    assert line == f"noisystudent: the model is {name} ({folder}/model.safetensors){chosen}"


def test_a_model_by_its_relative_path_is_named(
    finished: Path, images: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished / "iteration-1" / "control")
    _, (line,) = printed(capsys, "predict", ".", images / "test")
    assert line == "noisystudent: the model is control-1 (model.safetensors)"


def test_an_unfinished_run_says_what_it_lacks(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "verdict.json").unlink()
    _, (line,) = printed(capsys, "predict", out, images / "test")
    assert "the model is student-1 (" in line and line.endswith("the run is not finished: no verdict yet")
    record = out / "iteration-1" / "student" / "stage.json"
    write_record(record, (read_record(record) or {}) | {"status": "running"})
    exported = tmp_path / "exported.safetensors"
    commands = [
        ("predict", out, images / "test"),
        ("evaluate", out, "--data", images / "test"),
        ("label", out, "--unlabeled", images / "pool", "--out", tmp_path / "labels"),
        ("export", out, "--out", exported),
    ]
    for words in commands:
        _, (line, *comparison) = printed(capsys, *words)
        assert len(comparison) == (words[0] == "export")
        assert "the model is teacher (" in line, words
        assert line.endswith("the run is not finished: no student-1 yet"), words
    _, (line,) = printed(capsys, "predict", exported, images / "test")
    assert line == f"noisystudent: the model is {exported}"
