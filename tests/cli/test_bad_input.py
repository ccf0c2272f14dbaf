"""Wrong input gives one clear line with what would be right, and an exit code."""

from __future__ import annotations

import csv
import io
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from tiny import refused

from noisystudent.run.lock import lock
from noisystudent.self_training import planning

QUICK = ("--teacher.train.steps", "3", "--student.train.steps", "3", "--control", "none")


# --- odd and broken images are used or listed in the ledger, and the run is finished ---


def truncated(folder: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(tiny.pictures(0, 1, 9)[0]).save(buffer, "JPEG")
    (folder / "odd.jpg").write_bytes(buffer.getvalue()[:-200])


def text(folder: Path) -> None:
    (folder / "odd.jpg").write_text("I am not an image\n")


def vanished(folder: Path) -> None:
    (folder / "odd.jpg").symlink_to(folder / "nowhere.jpg")


def one_pixel(folder: Path) -> None:
    Image.new("RGB", (1, 1), (200, 10, 10)).save(folder / "odd.png")


def cmyk(folder: Path) -> None:
    Image.new("CMYK", (20, 12), (0, 200, 200, 10)).save(folder / "odd.jpg")


def sixteen_bit(folder: Path) -> None:
    Image.fromarray(np.full((9, 14), 40_000, np.uint16)).save(folder / "odd.png")


def animated(folder: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (0, 120, 250)]
    frames[0].save(folder / "odd.gif", save_all=True, append_images=frames[1:])


def bomb(folder: Path) -> None:
    """A PNG of 40,000 by 40,000 pixels in a few bytes: 4.8 GB once decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (folder / "odd.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (truncated, "runcated"),
        (text, "not an image"),
        (vanished, "cannot be read"),
        (bomb, "pixels"),
        (one_pixel, None),
        (cmyk, None),
        (sixteen_bit, None),
        (animated, None),
    ],
)
def test_an_odd_image_is_used_or_in_the_ledger(
    given: Path, recipe: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str | None
) -> None:
    damage(given / "pool" / "red")
    out = tmp_path / "run"
    words = ("run", recipe, *tiny.flags(given), "--out", out, *QUICK, "--data.max_bad_fraction", "0.05")
    # Without students, because only the scan of the images is tested.
    assert tiny.call(*words, "--students", "0") == 0
    with (out / "data" / "ledger.csv").open() as file:
        ledger = list(csv.DictReader(file))
    manifest = tiny.manifest(out)
    used = [row["id"] for row in manifest if row["set"] == "pool"]
    odd = next(path.name for path in (given / "pool" / "red").glob("odd.*"))
    if reason is None:
        assert ledger == [] and f"red/{odd}" in used
    else:
        assert [(row["set"], row["id"]) for row in ledger] == [("pool", f"red/{odd}")]
        assert reason in ledger[0]["reason"]
    assert len([name for name in used if not name.endswith(odd)]) == 42, "all other images have their row"


def test_a_bad_image_to_predict_is_named_and_gets_no_row(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_pixel(tmp_path)
    text(tmp_path)
    assert tiny.call("predict", finished, tmp_path, "--out", tmp_path / "rows.csv", "--device", "cpu") == 0
    assert [row.split(",")[0] for row in (tmp_path / "rows.csv").read_text().splitlines()] == [
        "id",
        "odd.png",
    ]
    assert "odd.jpg: not an image" in capsys.readouterr().err.splitlines()[-1]


def test_more_bad_images_than_allowed_stop_the_run(
    given: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text(given / "labeled" / "red")
    message = refused(capsys, 2, "run", recipe, *tiny.flags(given), "--out", tmp_path / "run")
    assert "labeled: 1 of 19 images cannot be read, more than data.max_bad_fraction 0.01" in message
    assert "red/odd.jpg" in message and "ledger.csv" in message


# --- sets that do not match ---


def only_red(given: Path) -> None:
    for label in ("blue", "green"):
        shutil.rmtree(given / "labeled" / label)


def no_class_folders(given: Path) -> None:
    for label in tiny.CLASSES:
        for path in (given / "labeled" / label).iterdir():
            path.rename(given / "labeled" / f"{label}-{path.name}")
        (given / "labeled" / label).rmdir()


def empty_pool(given: Path) -> None:
    shutil.rmtree(given / "pool")
    (given / "pool").mkdir()


def pink_in_val(given: Path) -> None:
    tiny.move(given, "val/red", "val/pink")


def pink_in_test(given: Path) -> None:
    tiny.move(given, "test/red", "test/pink")


def no_labels(given: Path) -> None:
    shutil.rmtree(given / "labeled")


def no_pool(given: Path) -> None:
    shutil.rmtree(given / "pool")


SETS: list[tuple[Callable[[Path], None], str]] = [
    (only_red, "data.labeled: {}/labeled holds only class 'red'; at least two classes are needed"),
    (no_class_folders, "data.labeled: {}/labeled: no class folders; labelled images lie in <class>/<image>"),
    (empty_pool, "data.unlabeled: {}/pool: no images in this folder"),
    (pink_in_val, "data.val: class 'pink' is not a class of data.labeled ('blue', 'green', 'red')"),
    (pink_in_test, "data.test: class 'pink' is not a class of data.labeled ('blue', 'green', 'red')"),
    (no_labels, "data.labeled: {}/labeled: no such file or folder"),
    (no_pool, "data.unlabeled: {}/pool: no such file or folder"),
]


@pytest.mark.parametrize("damage, expected", SETS)
def test_sets_that_do_not_match_give_one_line(
    given: Path,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    expected: str,
) -> None:
    damage(given)
    message = refused(capsys, 2, "run", recipe, *tiny.flags(given), "--out", tmp_path / "run", *QUICK)
    assert expected.format(given) in message


def test_empty_class_folders_and_classes_that_val_or_pool_lack_are_noted(
    given: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (given / "labeled" / "empty").mkdir()
    shutil.rmtree(given / "val" / "red")
    shutil.rmtree(given / "pool" / "red")
    for path in [*(given / "test" / "blue").iterdir(), *(given / "test" / "green").iterdir()]:
        path.rename(
            given / "val" / path.parent.name / f"more-{path.name}"
        )  # enough images to show that the teacher is above chance level
    out = tmp_path / "run"
    assert tiny.call("run", recipe, *tiny.flags(given)[:-2], "--out", out) == 0
    message = capsys.readouterr().out
    assert f"note: {given}/labeled: class folder 'empty' holds no image and is left out" in message
    assert "note: val: no image of 1 classes ('red')" in message
    assert (out / "verdict.json").is_file()


def test_a_file_without_permission_is_in_the_ledger(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "plan_long", lambda config, *_, **__: config)  # that starts a process
    with tempfile.TemporaryDirectory() as name:  # pytest's temporary folders cannot be read by other users
        folder = Path(name)
        folder.chmod(0o777)
        given = Path(shutil.copytree(images, folder / "images"))
        (given / "pool" / "red" / "00.png").chmod(0)
        recipe, out = tiny.write_recipe(folder / "tiny.yaml"), folder / "run"
        user = os.geteuid()
        if user == 0:  # root may read every file, so the run is made as the user `nobody`
            os.seteuid(65534)
        try:
            words = (*tiny.flags(given), "--out", out, "--students", "0", "--data.max_bad_fraction", "0.1")
            code = tiny.call("run", recipe, *words)
        finally:
            os.seteuid(user)
        assert code == 0
        assert "red/00.png,cannot be read: Permission denied" in (out / "data" / "ledger.csv").read_text()


# --- wrong folders and files ---


def test_an_output_folder_in_use(
    images: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock(tmp_path / "run"):
        message = refused(capsys, 2, "run", recipe, *tiny.flags(images), "--out", tmp_path / "run")
    assert message.endswith(f"--out {tmp_path}/run is in use by process {os.getpid()}; choose another --out")


def test_an_output_folder_that_is_a_file(
    images: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    message = refused(capsys, 2, "run", recipe, *tiny.flags(images), "--out", tmp_path / "file")
    assert f"--out {tmp_path}/file cannot be used" in message and "choose another" in message


FOREIGN: dict[str, tuple[tuple[str, ...], str]] = {
    "predict": (("{file}", "{images}/val"), "has no description of its model"),
    "evaluate": (("{file}", "--data", "{images}/val"), "has no description of its model"),
    "label": (("{file}", "--unlabeled", "{images}/val", "--out", "{out}"), "has no description of its model"),
    "export": (("{file}", "--out", "{out}.safetensors"), "has no description of its model"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_weights_of_another_program(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    import torch
    from safetensors.torch import save_file

    file = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, file)
    words, expected = FOREIGN[name]
    filled = [word.format(file=file, images=images, out=tmp_path / "out") for word in words]
    message = refused(capsys, 2, name, *filled)
    assert str(file) in message and expected in message
    file.write_bytes(b"garbage")
    assert "is not a readable safetensors file" in refused(capsys, 2, name, *filled)


def test_a_student_cannot_start_from_another_architecture(
    images: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--student.init", "teacher", "--student.model.name", "test_resnet", "--out", tmp_path / "run")
    message = refused(capsys, 2, "run", recipe, *tiny.flags(images), *words, "--student.train.steps", "3")
    assert "students.0.model.name is test_resnet and teacher.model.name is resnet8_16" in message


@pytest.mark.parametrize(
    "words, expected",
    [
        (("predict", "/no/run", "/no/image.png"), "/no/run holds no trained model; give a run directory"),
        (("evaluate", "/no/run", "--data", "/no/data"), "/no/run holds no trained model"),
        (("report", "/no/run"), "/no/run is not a run directory"),
        (("status", "/no/run"), "/no/run is not a run directory"),
        (("export", "/no/run", "--out", "x.pt"), "--out is x.pt; the file must end in .safetensors or .onnx"),
        (("select", "/no/labels", "--out", "x.parquet"), "/no/labels holds no pseudo-labels"),
        (("run", "/no/recipe.yaml"), "no recipe or YAML file '/no/recipe.yaml'"),
        (("recipes", "cifar10"), "did you mean 'cifar10-cpu'?"),
        (("run",), "data.labeled is empty; give --labeled a folder <class>/<image>"),
        (("train", "--labeled", "/no/labels"), "data.labeled: /no/labels: no such file or folder"),
        (("check", "--labeled", "/no/labels"), "data.labeled: /no/labels: no such file or folder"),
        (("plan", "--labeled", "/no/labels"), "data.labeled: /no/labels: no such file or folder"),
    ],
    ids=lambda value: "-".join(value[:1]) if isinstance(value, tuple) else "",
)
def test_paths_that_do_not_exist(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], expected: str
) -> None:
    assert expected in refused(capsys, 2, *words)
