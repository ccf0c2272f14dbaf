"""The Python class with the interface of scikit-learn, which makes the same run as the command."""

from __future__ import annotations

import dataclasses
import gc
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray

from noisystudent import Config, InputError, NoisyStudent, recipes
from noisystudent.estimator.results import Report
from noisystudent.recipes import resolve

Pixels = NDArray[np.uint8]


def arrays(name: str) -> tuple[Pixels, NDArray[np.str_]]:
    """(images, labels) of one of the tiny sets."""
    seed, count = list(tiny.PER_CLASS).index(name), tiny.PER_CLASS[name]
    images = [tiny.pictures(kind, count, seed) for kind in range(len(tiny.CLASSES))]
    return np.concatenate(images), np.repeat(tiny.CLASSES, count)


@pytest.fixture(scope="module")
def pool() -> Pixels:
    """The pool, its first image a second time, and an image of val."""
    images, _ = arrays("pool")
    return np.concatenate([images, images[:1], arrays("val")[0][:1]])


@pytest.fixture(scope="module")
def model(pool: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoisyStudent]:
    out = tmp_path_factory.mktemp("estimator")
    recipe = tiny.write_recipe(out / "tiny.yaml")
    model = NoisyStudent(str(recipe), out=out / "run", seed=0)
    assert model.fit(arrays("labeled"), pool, val=arrays("val"), test=arrays("test")) is model
    yield model


def test_the_attributes_that_fit_sets(model: NoisyStudent) -> None:
    assert tuple(model.classes_) == tiny.CLASSES
    assert (model.n_iter_, model.termination_condition_) == (1, "max_iter")
    assert np.array_equal(model.labeled_iter_, np.where(model.transduction_ < 0, -1, 1))
    assert list(model.scores_) == ["teacher", "student-1", "control-1"]
    for sets in model.scores_.values():
        assert list(sets) == ["val", "test"]
        assert list(sets["test"]) == ["top1", "top5", "nll", "ece", "brier"]
    assert model.verdict_["set"] == "test" and model.verdict_ == json.loads(
        (model.run_ / "verdict.json").read_text()
    )
    assert model.report_.path == model.run_ / "report.html" and Path(model.report_).is_file()


def test_it_predicts_arrays_folders_and_files(model: NoisyStudent, images: Path) -> None:
    pixels, labels = arrays("test")
    probs = model.predict_proba(pixels)
    assert probs.shape == (12, 3) and probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    classes = model.predict(pixels)
    assert classes.tolist() == [tiny.CLASSES[k] for k in probs.argmax(axis=1)]
    assert np.mean(classes == labels) == pytest.approx(model.scores_["student-1"]["test"]["top1"])
    assert model.score((pixels, labels)) == model.score(images / "test") == np.mean(classes == labels)
    np.testing.assert_allclose(model.predict_proba(images / "test"), probs, atol=1e-6)
    files = sorted((images / "test").rglob("*.png"))
    np.testing.assert_allclose(model.predict_proba(files), probs, atol=1e-6)
    assert model.predict(str(files[0])).tolist() == [classes[0]]


def test_transduction_has_a_row_for_each_row_of_the_pool(model: NoisyStudent, pool: Pixels) -> None:
    classes = model.transduction_
    assert classes.shape == (44,) and set(classes.tolist()) <= {-1, 0, 1, 2}
    assert classes[-2] == -1 and classes[-1] == -1, "a copy and an image of val are not trained on"
    truth = np.repeat([0, 1, 2], 14)
    kept = classes[:42] >= 0
    assert kept.sum() >= 30
    assert np.mean(classes[:42][kept] == truth[kept]) > 0.8
    assert np.mean(np.roll(classes[:42], 14)[kept] == truth[kept]) < 0.5, (
        "shifted rows would be less accurate"
    )


def test_without_a_pool_there_are_no_students(tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path / "tiny.yaml")
    with pytest.raises(InputError, match=r"data\.unlabeled is empty.*students=0"):
        NoisyStudent(str(recipe), out=tmp_path / "run").fit(arrays("labeled"), val=arrays("val"))
    assert not (tmp_path / "run").exists()
    alone = NoisyStudent(str(recipe), out=tmp_path / "alone", students=0).fit(
        arrays("labeled"), val=arrays("val")
    )
    assert alone.n_iter_ == 0 and alone.transduction_.shape == (0,) and list(alone.scores_) == ["teacher"]
    assert alone.predict(arrays("test")[0]).shape == (12,)


def test_a_pickled_estimator_predicts_in_another_process(tmp_path: Path) -> None:
    model = NoisyStudent(resolve(tiny.RECIPE, [("students", 0)])).fit(arrays("labeled"), val=arrays("val"))
    expected, images = model.predict_proba(arrays("test")[0]), tmp_path / "images.npy"
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    np.save(images, arrays("test")[0])
    del model
    gc.collect()
    program = (
        "import pickle, sys, numpy; from pathlib import Path; folder = Path(sys.argv[1]);"
        "model = pickle.loads((folder / 'model.pickle').read_bytes());"
        "numpy.save(folder / 'probs.npy', model.predict_proba(numpy.load(folder / 'images.npy')));"
        "print(tuple(model.classes_.tolist()), model.verdict_['set'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tiny.CLASSES} val\n"
    np.testing.assert_allclose(np.load(tmp_path / "probs.npy"), expected, atol=1e-6)


def test_a_run_is_loaded_as_the_estimator_that_made_it(model: NoisyStudent, finished: Path) -> None:
    loaded = NoisyStudent.load(model.run_)
    pixels, _ = arrays("test")
    assert np.array_equal(loaded.predict_proba(pixels), model.predict_proba(pixels))
    assert np.array_equal(loaded.classes_, model.classes_)
    for name in ("verdict_", "scores_", "n_iter_", "run_", "report_"):
        assert getattr(loaded, name) == getattr(model, name), name
    kept = model.transduction_[model.transduction_ >= 0]
    assert np.array_equal(loaded.transduction_[loaded.transduction_ >= 0], kept), "in pool rows"
    by_command = NoisyStudent.load(str(finished))
    assert tuple(by_command.classes_) == tiny.CLASSES and by_command.predict(pixels).shape == (12,)


def test_what_is_no_finished_run_is_not_loaded(model: NoisyStudent, finished: Path, tmp_path: Path) -> None:
    advice = {finished: "run --out", Path(model.run_): "`fit` again with the same arrays"}
    for number, (folder, expected) in enumerate(advice.items()):
        copy = tmp_path / f"run-{number}"
        shutil.copytree(folder, copy)
        (copy / "verdict.json").unlink()
        with pytest.raises(InputError, match=f"run-{number} is not a finished run.*{expected}"):
            NoisyStudent.load(copy)
    with pytest.raises(InputError, match="none is not a run"):
        NoisyStudent.load(tmp_path / "none")


def test_a_config_is_a_recipe_and_the_run_may_be_temporary() -> None:
    config = resolve(tiny.RECIPE, [("students", 0)])
    assert isinstance(config, Config)
    model = NoisyStudent(config).fit(arrays("labeled"), val=arrays("val"))
    folder = model.run_.parent
    assert folder.is_dir()
    del model
    gc.collect()
    assert not folder.exists(), "deleted with the object"
    with pytest.raises(InputError, match="seed is given together with a Config"):
        NoisyStudent(config, seed=3).fit(arrays("labeled"))
    assert dataclasses.replace(config, seed=3) != config


def test_predicting_needs_a_fitted_model() -> None:
    model = NoisyStudent("demo")
    for method in (model.predict, model.predict_proba):
        with pytest.raises(
            InputError, match=r"this NoisyStudent is not fitted yet; call fit\(labeled, unlabeled\) first"
        ):
            method(arrays("test")[0])


@pytest.mark.parametrize(
    "labeled, expected",
    [
        ((np.zeros((4, 8, 8), np.float32), [0, 1, 0, 1]), "must be uint8 (N, H, W) or (N, H, W, 3)"),
        ((np.zeros((4, 8, 8), np.uint8), [0, 1]), "4 images but 2 labels"),
        ((np.zeros((4, 8, 8), np.uint8), [0, 0, 0, 0]), "at least two classes"),
        ((np.zeros((4, 8, 8), np.uint8), [0, 1, -1, 0]), "has no label"),
        (np.zeros((4, 8, 8), np.uint8), "has no label"),
    ],
)
def test_arrays_that_do_not_fit(labeled: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        NoisyStudent("demo", students=0).fit(labeled)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "images, expected",
    [
        (np.zeros((8, 8, 3), np.uint8), r"a single image; give image\[None\]"),
        ([np.zeros((8, 8), np.uint8)], "are given as ndarray; give paths, or an array"),
        (["a.png", np.zeros((8, 8), np.uint8)], "are given as ndarray; give paths, or an array"),
        (torch.zeros(2, 8, 8), "are given as Tensor; give paths, or an array"),
        (([[0]], [1]), "are given as list; .* as a pair"),
    ],
)
def test_what_is_neither_paths_nor_an_array_of_images(images: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        NoisyStudent("demo", students=0).fit(images)


def test_a_run_on_folders_is_the_one_of_the_command(finished: Path, images: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    before = {name: tiny.digest(out / name) for name in ("config.yaml", "verdict.json", "verdict.stage.json")}
    model = NoisyStudent(resolve(tiny.RECIPE), out=out)
    model.fit(images / "labeled", images / "pool", val=images / "val", test=[str(images / "test")])
    assert {name: tiny.digest(out / name) for name in before} == before


def test_a_run_on_arrays_names_no_folders_of_the_recipe(images: Path, tmp_path: Path) -> None:
    NoisyStudent(tiny.config(images, ("students", 0)), out=tmp_path).fit(arrays("labeled"))
    data = recipes.load(str(tmp_path / "config.yaml")).data
    assert data.labeled == data.unlabeled == data.val == data.test == ()


def test_a_report_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    assert "does not exist any more" in Report(tmp_path / "report.html")._repr_html_()


def test_wrong_fields_are_named() -> None:
    with pytest.raises(
        InputError, match=r"no field 'teacher\.train\.stepps'; did you mean 'teacher\.train\.steps'"
    ):
        NoisyStudent("demo", teacher__train__stepps=3).fit(arrays("labeled"))
