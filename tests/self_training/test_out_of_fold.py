"""Folds: every labelled image is predicted by a model that has not seen it, and these predictions choose."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from test_interrupted import _server_that_has_imported_all as _server  # noqa: F401
from test_interrupted import after, assert_same, attempt, reached

from noisystudent.config import Config
from noisystudent.console import Progress
from noisystudent.data.folds import divide
from noisystudent.data.prepare import open_dataset
from noisystudent.data.sources import open_sources
from noisystudent.errors import InputError, RunError
from noisystudent.inference.load import load_predictor
from noisystudent.inference.predict import predict
from noisystudent.metrics import scores, temperature
from noisystudent.report import build
from noisystudent.run.build import build_graph
from noisystudent.run.rundir import ModelDir, RunDir
from noisystudent.runtime import torch_seed
from noisystudent.selection import choose, energy_limit
from noisystudent.self_training import folds as stage
from noisystudent.self_training import train_stage
from noisystudent.self_training.trainer import train
from noisystudent.self_training.training import Training

FOLDS = 3
FOLD = [f"iteration-0/fold-{number}" for number in range(1, FOLDS + 1)]


def config(images: Path, *fields: tuple[str, object]) -> Config:
    return tiny.config(images, ("folds", FOLDS), ("student.selection.junk_rejection", 0.5), *fields)


@pytest.fixture(scope="module")
def run(many: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("folds") / "run"
    return out, tiny.run(config(many), out)


def test_a_fold_is_the_model_of_a_folder_without_its_images(
    many: Path, run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Bit for bit: so no pixel and no label of the images that it predicts can have reached it."""
    given, (out, _) = config(many), run
    images = open_dataset(RunDir(out).data, given.data, open_sources(given.data)).labeled
    fold = divide(images.content_hash, images.labels, FOLDS, given.seed)
    unseen = np.flatnonzero(fold == 1)
    shutil.copytree(many, spoilt := tmp_path / "images")
    for name in images.ids(unseen):
        (spoilt / "labeled" / name).unlink()
    # The first teacher of the smaller folder, with the seed of the fold.
    alone = tiny.config(spoilt)
    tiny.run(replace(alone, students=()), tmp_path / "scan")
    small = open_dataset(RunDir(tmp_path / "scan").data, alone.data, open_sources(alone.data))
    assert len(small.labeled) == len(images) - len(unseen)
    training = Training(
        learner=alone.teacher,
        dataset=small,
        folder=ModelDir(tmp_path / "model"),
        seed=torch_seed(given.seed, "iteration-0/fold-2"),
        resolution=tiny.SIDE,
        device=load_predictor(out / FOLD[1], "cpu").device,
        workers=0,
    )
    train(training, None, Progress(), lambda line: None)
    assert tiny.weights(tmp_path, "model") == tiny.weights(out, FOLD[1])


def test_out_of_fold_predictions_are_those_of_the_models_that_have_not_seen_the_image(
    many: Path, run: tuple[Path, list[str]]
) -> None:
    given, (out, _) = config(many), run
    images = open_dataset(RunDir(out).data, given.data, open_sources(given.data)).labeled
    probs, labels = scores.load_predictions(out / "iteration-0" / "out-of-fold.npz")
    assert (labels == images.labels).all() and len(probs) == 60
    fold = divide(images.content_hash, images.labels, FOLDS, given.seed)
    for number, folder in enumerate(FOLD):
        paths = [many / "labeled" / name for name in images.ids(np.flatnonzero(fold == number))]
        found = predict(load_predictor(out / folder, "cpu"), paths).probs
        np.testing.assert_allclose(probs[fold == number], found, atol=1e-6)
        model, unseen = load_predictor(out / folder, "cpu"), images.subset(np.flatnonzero(fold == number))
        energies = scores.load_energies(out / "iteration-0" / "out-of-fold.npz")
        assert energies is not None
        np.testing.assert_allclose(
            energies[fold == number], replace(model, temperature=1.0).energies(unseen), atol=1e-5
        )
    steps = [json.loads((out / name / "metrics.jsonl").read_text().splitlines()[-1])["step"] for name in FOLD]
    assert steps == [12] * FOLDS


def test_threshold_and_temperature_are_chosen_said_and_recorded(
    many: Path, run: tuple[Path, list[str]]
) -> None:
    out, lines = run
    probs, labels = scores.load_predictions(out / "iteration-0" / "out-of-fold.npz")
    selection, why = choose(config(many).students[0].selection, probs, labels)
    fitted = temperature.fit(probs, labels)
    line = f"student-1: {why}; pseudo_label.temperature is {fitted:g}, fitted out of fold"
    assert line in lines and lines.index(line) < next(
        i for i, at in enumerate(lines) if at.startswith("teacher:")
    )
    assert [at for at in lines if at.startswith("out-of-fold: right labels by confidence: ")]
    record = json.loads((out / "iteration-1" / "selection.stage.json").read_text())["result"]
    assert record["chosen"]["threshold"] == selection.threshold
    assert record["chosen"]["temperature"] == fitted
    assert selection.threshold > config(many).students[0].selection.threshold and fitted > 1
    assert record["precision"]["source"] == "out of fold" and record["precision"]["images"] == 60
    # The limit of junk is theirs, too: there are 12 val images.
    energies = scores.load_energies(out / "iteration-0" / "out-of-fold.npz")
    assert energies is not None
    limit = energy_limit(energies, 0.5)
    parts = sorted((out / "iteration-1" / "labels").glob("*.parquet"))
    pool = np.concatenate([pq.read_table(part)["energy"].to_numpy() for part in parts])
    marked = pq.read_table(out / "iteration-1" / "selection.parquet")["junk"].to_numpy()
    assert limit is not None and (marked == (pool < limit)).all()
    of_val = energy_limit(np.load(parts[0].with_name("energies.npy")), 0.5)
    assert of_val is not None and (marked != (pool < of_val)).any()
    shown = json.loads((out / "iteration-1" / "evaluation.json").read_text())["selection"]
    assert shown["chosen"] == record["chosen"]
    page = build(out).read_text()
    assert why in page and "right labels by confidence, out of fold" in page
    assert "labelled images, out of fold" in shown["precision"]["sentence"]


def test_chosen_values_are_those_of_a_run_that_is_given_them(
    many: Path, run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    out, _ = run
    chosen = json.loads((out / "iteration-1" / "selection.stage.json").read_text())["result"]["chosen"]
    fields = [
        ("student.selection.threshold", chosen["threshold"]),
        ("student.pseudo_label.temperature", chosen["temperature"]),
    ]
    tiny.run(tiny.config(many, *fields), tmp_path)
    for model in ("iteration-0/teacher", "iteration-1/student", "iteration-1/control"):
        assert tiny.weights(tmp_path, model) == tiny.weights(out, model)


def test_without_folds_the_stages_are_the_same_and_with_them_only_what_depends_on_them_changes(
    many: Path, tmp_path: Path
) -> None:
    plain, folds, kept = (
        {each.name: each.fingerprint for each in build_graph(given, tiny.LISTING, RunDir(tmp_path)).stages()}
        for given in (tiny.config(many), config(many), config(many, ("choose", False)))
    )
    assert "out-of-fold" not in plain and set(folds) - set(plain) == {
        "fold-1", "fold-2", "fold-3", "out-of-fold",
    }  # fmt: skip
    changed = {name for name in plain if plain[name] != folds[name]}
    assert changed == {"labels-1", "selection-1", "student-1", "judgement"}
    assert {name for name in plain if plain[name] != kept[name]} == changed - {"labels-1"}


def test_choose_false_keeps_the_given_values(many: Path, run: tuple[Path, list[str]], tmp_path: Path) -> None:
    shutil.copytree(run[0], out := tmp_path / "run")
    lines = tiny.run(config(many, ("choose", False)), out)
    assert "fold-1: done before, skipped" in lines and "out-of-fold: done before, skipped" in lines
    record = json.loads((out / "iteration-1" / "selection.stage.json").read_text())["result"]
    assert "chosen" not in record and record["precision"]["source"] == "out of fold"


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(
    many: Path, run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    recipe = tiny.write_recipe(tmp_path / "tiny.yaml")
    out = tmp_path / "run"
    junk = ("--student.selection.junk_rejection", 0.5)
    command = ("run", recipe, *tiny.flags(many), "--folds", FOLDS, *junk, "--out", out)
    moments = [
        (f"{FOLD[0]}/checkpoint/step-00000005/.metadata", ""),
        (f"{FOLD[0]}/stage.json", "done"),
        (f"{FOLD[1]}/model.safetensors", ""),
        ("iteration-0/out-of-fold.stage.json", "running"),
        ("iteration-0/teacher/stage.json", "running"),
    ]
    for name, text in moments:
        assert attempt(command, out, reached(name, text)) < 0, name
    assert attempt(command, out, after(300)) == 0
    assert_same(out, run[0])
    for name in FOLD:
        assert tiny.weights(out, name) == tiny.weights(run[0], name)
    first, second = (scores.load_predictions(at / "iteration-0" / "out-of-fold.npz") for at in (out, run[0]))
    assert (first.probs == second.probs).all()


def test_a_damaged_file_is_made_again(many: Path, run: tuple[Path, list[str]], tmp_path: Path) -> None:
    shutil.copytree(run[0], out := tmp_path / "run")
    file = out / "iteration-0" / "out-of-fold.npz"
    before = file.read_bytes()
    file.write_bytes(before[:-9] + b"otherwise")
    lines = tiny.run(config(many), out)
    assert [line for line in lines if line.startswith("out-of-fold: iteration-0/out-of-fold.npz is damaged")]
    assert file.read_bytes() == before


@pytest.mark.slow
def test_finetuned_teachers_have_finetuned_folds_of_as_many_steps(many: Path, tmp_path: Path) -> None:
    fields = [("teacher.train.steps", None), ("teacher.train.epochs", 1), ("teacher.finetune.epochs", 0.5)]
    tiny.run(config(many, *fields, ("students", 1), ("control", "none")), tmp_path)
    for folder in ("", "finetune"):
        steps = {
            json.loads((tmp_path / name / folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
            for name in ("iteration-0/teacher", *FOLD)
        }
        assert len(steps) == 1


def test_more_folds_than_images_is_one_line(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--folds is 19, but there are 18 different labelled images"):
        tiny.run(tiny.config(images, ("folds", 19)), tmp_path)


# --- guards on a val set of 12 images ---


def guesses(images: int) -> scores.Predictions:
    """About one in three is right, and every class is predicted as often as the others."""
    labels = np.arange(images) % 3
    sure = np.linspace(0.5, 0.9, images, dtype=np.float32)[:, None]
    predicted = (labels + np.arange(images) // 3) % 3
    return scores.Predictions(np.where(np.eye(3)[predicted] > 0, sure, (1 - sure) / 2), labels)


def test_twelve_val_images_stop_no_run_by_chance(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_stage, "predictions", lambda *_: guesses(12))
    lines = tiny.run(tiny.config(images), tmp_path)
    (warning,) = [line for line in lines if line.startswith("warning: teacher: ")]
    assert "6 of 12 val images correctly" in warning
    assert warning.endswith("too few to stop the run by it; give --folds 5 or more labels")
    assert (tmp_path / "verdict.json").exists()
    (small,) = [line for line in lines if line.startswith("warning: val has 12 images: ")]
    assert lines.index(small) < lines.index(warning)


def test_with_folds_the_labels_stop_it(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "label_val", lambda teacher, *_: guesses(len(teacher.dataset.val)))
    with pytest.raises(RunError) as first:
        tiny.run(config(many), tmp_path)
    line = str(first.value)
    assert line.startswith("out-of-fold: the model predicts ") and "60 labelled images out of fold" in line
    assert not (tmp_path / "iteration-0" / "teacher").exists()
    with pytest.raises(RunError, match="out-of-fold"):
        tiny.run(config(many), tmp_path)


@pytest.mark.slow
def test_with_folds_above_chance_val_does_not_warn(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_stage, "predictions", lambda *_: guesses(12))
    lines = tiny.run(config(many), tmp_path)
    assert not [line for line in lines if line.startswith("warning: teacher: ")]


def test_a_collapsed_teacher_stops_also_on_twelve_images(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = np.tile(np.array([[0.8, 0.1, 0.1]], np.float32), (12, 1))
    monkeypatch.setattr(
        train_stage, "predictions", lambda *_: scores.Predictions(constant, np.arange(12) % 3)
    )
    with pytest.raises(RunError, match="teacher: the model has collapsed onto a few classes"):
        tiny.run(tiny.config(images), tmp_path)
