"""Wrong values and names, on the command line or in a file, give one clear line."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import tiny
from PIL import Image
from tiny import move, refused


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        ),
        RuntimeError("Unable to instantiate PyTypeObject"),
        SystemError("error return without exception set"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_of_too_little_memory_is_the_same_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(_tokens: list[str]) -> None:
        raise error

    monkeypatch.setattr("noisystudent.cli._run", fail)
    reason = f" ({error})" if str(error) else ""
    assert refused(capsys, 1, "recipes") == (
        f"noisystudent: there is not enough memory{reason}; free some, or give fewer data.workers or smaller"
        " batches"
    )


# --- values and names that are not quite right ---


@pytest.mark.parametrize(
    "words, expected",
    [
        (
            ("--teacher.train.stepps", "3"),
            "no field 'teacher.train.stepps'; did you mean 'teacher.train.steps'?",
        ),
        (("--student.selection.treshold", "1"), "did you mean 'student.selection.threshold'?"),
        (("--labelled", "x"), "Unknown option: --labelled. Did you mean --labeled?"),
        (("--teacher.train.steps", "many"), "teacher.train.steps is 'many'; it must be a whole number"),
        (("--teacher.train.steps",), "--teacher.train.steps needs a value"),
        (("--teacher.train.steps", "[1"), "--teacher.train.steps '[1' is not valid YAML"),
        (("--teacher.train.optimizer", "adam"), "one of rmsprop_tf, sgd, adamw; did you mean 'adamw'?"),
        (
            ("--student.selection.threshold", "30"),
            "selection.threshold is 30.0; it must be at least 0 and below 1",
        ),
        (("--teacher.train.epochs", "3", "--teacher.train.steps", "3"), ""),
        (("--students", "two"), "students"),
        (("--students.4.init", "teacher"), "--students.4.init: no such student; they are numbered 0 to 0"),
        (("--teacher.augment.randaugment", "rand-x9"), "rand-x9"),
        (("--teacher.model.name", "resnet8_17"), "model.name is 'resnet8_17'"),
        (("--device", "gpu"), "device is 'gpu', which is not usable here"),
        (("--device", "cuda:9"), "device is 'cuda:9', which is not usable here"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_value_on_the_command_line(
    images: Path,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    expected: str,
) -> None:
    call = ("run", recipe, *tiny.flags(images), "--out", tmp_path / "run", *words)
    if expected:
        assert expected in refused(capsys, 2, *call)
    else:  # the later of the two flags is used, here steps
        assert tiny.call(*call, "--students", "0") == 0


@pytest.mark.parametrize(
    "body, expected",
    [
        ("teacher: {train: {stepps: 3}}", "unknown key 'teacher.train.stepps'; did you mean 'steps'?"),
        ("techer: {}", "unknown key 'techer'; did you mean 'teacher'?"),
        ("teacher: 3", "3 is given where a mapping of fields is needed"),
        ("teacher: {train: {steps: 3, epochs: 2}}", "give only one of them"),
        ("data: [", "is not valid YAML"),
        ("- a\n- b", "is a list; it must be a mapping of fields"),
        ("students: [{init: techer}]", "one of scratch, teacher; did you mean 'teacher'?"),
        ("students: 1.5", "students is 1.5; it must be a whole number, or a list of mappings"),
        ("students: -1", "students is -1; it must be a whole number, or a list of mappings"),
        ("students: [3]", "students is [3]; it must be a whole number, or a list of mappings"),
        ("control: perhaps", "control.0 is 'perhaps'; it must be one of none, same_steps, same_compute"),
    ],
)
def test_a_wrong_value_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str, expected: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(body)
    message = refused(capsys, 2, "run", path, "--labeled", "x")
    assert expected in message and str(path) in message


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_training_without_a_length(
    images: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    words = ("--out", tmp_path / "run", "--teacher.train.steps", "null")
    message = refused(capsys, 2, command, recipe, *tiny.flags(images), *words)
    assert "teacher.train has neither epochs nor steps; give one of the two" in message


def test_fields_for_a_command_that_has_none(
    finished: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, 2, "predict", finished, images / "val", "--teacher.train.steps", "3")
    assert "--teacher.train.steps: predict takes no configuration fields" in message


def test_a_class_the_model_does_not_know(
    finished: Path, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    move(given, "val/red", "val/pink")
    message = refused(capsys, 2, "evaluate", finished, "--data", given / "val")
    assert "class 'pink' is not one of the model's 3 (blue, green, red)" in message
    assert tiny.call("predict", finished, given / "val") == 0, "to predict, folders are no classes"
    assert len(capsys.readouterr().out.splitlines()) == 1 + 12


def test_a_teacher_that_guesses_stops_the_run_before_it_labels(
    given: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    for kind in range(3):  # 102 images are enough to show it, and on most of them nobody is right
        for number, pixels in enumerate(tiny.pictures(kind, 30, 9)):
            Image.fromarray(pixels).save(given / "val" / tiny.CLASSES[number % 3] / f"{kind}-{number}.png")
    message = refused(capsys, 1, "run", recipe, *tiny.flags(given), "--out", out, "--teacher.train.lr", "0")
    assert "teacher: the model predicts" in message and "the run stops before it labels anything" in message
    assert not (out / "iteration-1").exists()


@pytest.mark.parametrize("name", ["noise", "hard", "on_the_fly", "match_temperature"])
def test_label_refuses_what_only_a_student_has(
    name: str, finished: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--unlabeled", images / "val", "--out", tmp_path / "labels", f"--pseudo_label.{name}", "true")
    assert f"pseudo_label.{name} is true; it applies only to `run`" in refused(
        capsys, 2, "label", finished, *words
    )
    assert not (tmp_path / "labels").exists()


def test_select_refuses_what_only_a_run_has(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (finished / "iteration-1" / "labels", "--out", tmp_path / "kept.parquet")
    message = refused(capsys, 2, "select", *words, "--selection.reassign", "true")
    assert "selection.reassign is true; it applies only to `run`" in message


@pytest.mark.parametrize("command", ["predict", "select", "export"])
def test_a_folder_is_not_taken_for_a_file(
    finished: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = tmp_path / "keep.safetensors"
    out.mkdir()
    (out / "precious.txt").write_text("x")
    given = {"select": (finished / "iteration-1" / "labels",), "predict": (finished, images / "val")}
    message = refused(capsys, 2, command, *given.get(command, (finished,)), "--out", out)
    assert f"--out is {out}, which is a folder; name a file" in message
    assert (out / "precious.txt").read_text() == "x"


def test_a_folder_of_labels_is_not_given_to_another_model(
    finished: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--unlabeled", images / "val", "--out", tmp_path / "labels")
    assert tiny.call("label", finished, *words) == 0
    assert tiny.call("label", finished, *words) == 0, "the same again goes on"
    capsys.readouterr()
    options = (("--pseudo_label.flip", "true"), ("--pseudo_label.temperature", "0.5"))
    for other in ((finished / "iteration-0" / "teacher",), *((finished, *option) for option in options)):
        message = refused(capsys, 2, "label", *other, *words)
        assert f"--out {tmp_path}/labels holds the labels of another model or of other options" in message
    message = refused(capsys, 2, "label", finished, "--unlabeled", images / "val", "--out", finished)
    assert f"--out {finished} is the folder of a run, not of a labelling; choose another" in message


@pytest.mark.parametrize(("command", "flag"), [("label", "--unlabeled"), ("embed", "--images")])
def test_finished_results_of_other_images_are_not_replaced(
    finished: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, flag: str
) -> None:
    out, pool, fewer = tmp_path / "out", images / "pool", tmp_path / "fewer"
    shutil.copytree(pool / "blue", fewer)
    max(fewer.iterdir()).unlink()
    assert tiny.call(command, finished, flag, pool / "blue", "--out", out) == 0
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    capsys.readouterr()
    for other in (pool / "red", fewer):
        message = refused(capsys, 2, command, finished, flag, other, "--out", out)
        assert f"--out {out} holds the" in message and "of other images; choose another folder" in message
        assert before == {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert tiny.call(command, finished, flag, pool, "--out", out) == 0, "more images may follow"
