"""Values without bound, outputs that cannot be written, models that are not what they claim: one line."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
import tiny
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import Capture, refused

QUICK = ("--teacher.train.steps", "3")


@pytest.mark.parametrize(
    "field, value",
    [
        ("teacher.train.lr", ".inf"),
        ("teacher.train.lr", "1e300"),
        ("teacher.train.weight_decay", "nan"),
        ("teacher.train.epochs", "inf"),
        ("teacher.train.batch_size", "1000000000000"),
        ("teacher.model.resolution", "1000000000"),
        ("teacher.model.options", "{a: .inf}"),
        ("teacher.model.options", "{a: {b: c}}"),
        ("student.selection.per_class", "100000000000000000000"),
        ("student.pseudo_label.scales", "[.inf]"),
        ("student.unlabeled_ratio", "1000000000000"),
        ("data.resolution", "1000000000"),
        ("data.workers", "100000"),
        ("evaluate.resamples", "100000000000"),
        ("evaluate.ece_bins", "1000000000000"),
    ],
)
def test_numbers_have_bounds(field: str, value: str, images: Path, recipe: Path, capsys: Capture) -> None:
    line = refused(capsys, 2, "plan", recipe, *tiny.flags(images), f"--{field}", value)
    assert field.removeprefix("teacher.").removeprefix("student.").removesuffix("s") in line
    assert "it must be " in line


@pytest.mark.parametrize("flag", ["--students", "--ensemble"])
def test_counts_have_bounds(flag: str, images: Path, recipe: Path, capsys: Capture) -> None:
    assert "at most 100" in refused(capsys, 2, "plan", recipe, *tiny.flags(images), flag, "1000000000")


@pytest.mark.parametrize("mode", ["paper", pytest.param("official", marks=pytest.mark.slow)])
def test_a_huge_balanced_pool_is_selected_and_trained_on(
    mode: str, images: Path, recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = (
        "--student.selection.per_class",
        "1000000000",
        "--student.selection.mode",
        mode,
        "--control",
        "none",
    )
    assert tiny.call("run", recipe, *tiny.flags(images), "--out", tmp_path / "run", *words) == 0


def test_predict_and_label_of_no_readable_image_are_one_line(
    finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    for name in ("a.jpg", "b.png"):
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / name).write_text("no image")
    expected = f"{tmp_path}/bad: none of 2 images can be read; the first is a.jpg: not an image"
    out = tmp_path / "rows.csv"
    assert expected in refused(capsys, 2, "predict", finished, tmp_path / "bad", "--out", out)
    assert not out.exists()
    words = ("--unlabeled", tmp_path / "bad", "--out", tmp_path / "labels")
    assert expected in refused(capsys, 2, "label", finished, *words)


@pytest.mark.parametrize("name", ["x" * 250 + ".csv", "x" * 5000 + ".csv", "x/" * 3000 + "a.csv"])
def test_an_output_with_a_name_that_is_too_long(
    name: str, finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    line = refused(capsys, 2, "predict", finished, images / "test", "--out", tmp_path / name)
    assert "File name too long; choose another place" in line and len(line) < 2000


def test_a_run_that_cannot_be_written_is_read_and_a_forbidden_output_is_refused(
    finished: Path, images: Path, capsys: Capture
) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's temporary folders cannot be read by other users
        folder = Path(name)
        folder.chmod(0o755)
        run, photos = shutil.copytree(finished, folder / "run"), shutil.copytree(images, folder / "images")
        (folder / "runs").mkdir()
        recipe = tiny.write_recipe(folder / "tiny.yaml")
        user = os.geteuid()
        if user == 0:  # root may write everywhere, so the commands are called as the user `nobody`
            os.seteuid(65534)
        else:
            folder.chmod(0o555)
        try:
            reading: list[tuple[object, ...]] = [
                ("status", run),
                ("plan", recipe, *tiny.flags(photos), "--out", run),
            ]
            if os.access(sys.executable, os.X_OK, effective_ids=True):  # these start a process
                reading.append(("predict", run, photos / "test"))
                reading.append(("evaluate", run, "--data", photos / "test", "--tests", "clean"))
            assert [tiny.call(*words) for words in reading] == [0] * len(reading)
            capsys.readouterr()
            for words in (
                ("predict", run, photos / "test", "--out", folder / "runs" / "new" / "a.csv"),
                ("label", run, "--unlabeled", photos / "test", "--out", folder / "runs" / "labels"),
                ("run", recipe, *tiny.flags(photos), "--out", folder / "runs" / "new"),
                ("check", *tiny.flags(photos), "--out", folder / "runs" / "new"),
                ("export", run),
                ("report", run),
                ("run", recipe, *tiny.flags(photos), "--out", run),
            ):
                line = refused(capsys, 2, *words)
                assert "Permission denied" in line, words
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def renamed(finished: Path, out: Path, **metadata: str) -> Path:
    """The weights of the student with other metadata."""
    with safe_open(finished / "iteration-1" / "student" / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        save_file(tensors, out, dict(file.metadata()) | metadata)
    return out


NAMES = {
    "too few": json.dumps(["a", "b"]),
    "too many": json.dumps(["a", "b", "c", "d"]),
    "equal": json.dumps(["a", "a", "b"]),
    "numbers": json.dumps([1, 2, 3]),
    "mapping": json.dumps({"a": 1, "b": 2, "c": 3}),
    "no JSON": "x{",
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("command", ["predict", "evaluate", "label", "export"])
def test_class_names_are_one_for_each_output(
    kind: str, command: str, finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = renamed(finished, tmp_path / "model.safetensors", classes=NAMES[kind])
    more: dict[str, tuple[object, ...]] = {
        "predict": (images / "test",),
        "evaluate": ("--data", images / "test"),
        "label": ("--unlabeled", images / "test", "--out", tmp_path / "labels"),
        "export": ("--out", tmp_path / "out.safetensors"),
    }
    line = refused(capsys, 2, command, file, *more[command])
    assert f"{file}: the description of its model is damaged (" in line


@pytest.mark.parametrize(
    "metadata",
    [
        {"num_classes": "1000000000000"},
        {"num_classes": "x"},
        {"resolution": "-"},
        {"options": "[1]"},
        {"options": '{"pretrained_cfg_overlay": "x"}'},
    ],
)
def test_weights_with_a_damaged_description_are_one_line(
    metadata: dict[str, str], finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = renamed(finished, tmp_path / "model.safetensors", **metadata)
    refused(capsys, 2, "predict", file, images / "test")


def test_classes_that_differ_in_their_unicode_form_only_are_one_class(
    given: Path, recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    composed, split = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    (given / "labeled" / "red").rename(given / "labeled" / split)
    (given / "val" / "red").rename(given / "val" / composed)
    (given / "labeled" / composed).mkdir()
    (given / "labeled" / split / "00.png").rename(given / "labeled" / composed / "00.png")
    sets = ("--labeled", given / "labeled", "--val", given / "val", "--out", tmp_path / "run")
    assert tiny.call("run", recipe, *sets, "--students", "0", *QUICK) in (0, 1)
    content = json.loads((tmp_path / "run" / "data" / "dataset.json").read_text())
    assert content["classes"] == ["blue", composed, "green"]
    labels = [row["label"] for row in tiny.manifest(tmp_path / "run") if row["set"] == "labeled"]
    assert sorted(labels) == [0] * 6 + [1] * 6 + [2] * 6
