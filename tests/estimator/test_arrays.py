"""`NoisyStudentClassifier` on arrays, and the words that it shares with scikit-learn's self-training."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import clone, is_classifier
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.utils.estimator_checks import check_estimator

from noisystudent import InputError, NoisyStudent, NoisyStudentClassifier
from noisystudent.config import Config
from noisystudent.estimator.results import labeled_iterations, termination_condition
from noisystudent.recipes import resolve

LABELS = np.array([2, 10, 7])  # as names they are in another order: "10", "2", "7"


def config(*overrides: tuple[str, Any]) -> Config:
    return resolve(tiny.RECIPE, [("control", "none"), *overrides])


@pytest.fixture(scope="module")
def sets() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images, 14 of each class, and labels, of which the first 6 of each class are given."""
    images = np.concatenate([tiny.pictures(kind, 14, seed=0) for kind in range(3)])
    y = np.repeat(LABELS, 14)
    y[np.arange(42) % 14 >= 6] = -1
    return images, y


@pytest.fixture(scope="module")
def model(sets: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> NoisyStudentClassifier:
    X, y = sets
    model = NoisyStudentClassifier(config(("students", 2)))
    assert model.fit(X, y) is model
    return model


def test_given_labels_stay_and_the_others_say_when_they_came(
    model: NoisyStudentClassifier, sets: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    _, y = sets
    assert model.classes_.tolist() == [2, 7, 10] and model.n_iter_ == 2
    assert np.array_equal(model.transduction_[y != -1], y[y != -1])
    assert np.array_equal(model.labeled_iter_ == 0, y != -1)
    assert np.array_equal(model.labeled_iter_ == -1, model.transduction_ == -1)
    kept = (y == -1) & (model.transduction_ != -1)
    assert kept.sum() > 12 and set(model.labeled_iter_[kept]) <= {1, 2}
    assert np.mean(model.transduction_[kept] == np.repeat(LABELS, 14)[kept]) > 0.8


def test_predictions_are_labels_of_the_type_of_y(model: NoisyStudentClassifier) -> None:
    X = np.concatenate([tiny.pictures(kind, 10, seed=2) for kind in range(3)])
    probs = model.predict_proba(X)
    predicted = model.predict(X)
    assert predicted.dtype == LABELS.dtype and set(predicted) <= set(LABELS)
    assert np.array_equal(predicted, model.classes_[probs.argmax(axis=1)])
    assert model.score(X, np.repeat(LABELS, 10)) == np.mean(predicted == np.repeat(LABELS, 10)) > 0.8
    assert model.score(X, predicted) == 1
    half = np.where(np.arange(len(X)) % 2, -1, predicted)
    assert model.score(X, half) == 1, "as in a search with unlabelled rows"
    assert model.score(X, half, np.ones(len(X))) == 1
    with pytest.raises(ValueError, match="y has no label but -1"):
        model.score(X, np.full(len(X), -1))
    with pytest.raises(ValueError, match=r"images of shape \(16, 8, 3\); the model has \(16, 16, 3\)"):
        model.predict(X[:, :, :8])


def test_without_students_unlabelled_rows_are_not_given(
    sets: tuple[NDArray[np.uint8], NDArray[np.int64]],
) -> None:
    X, y = sets
    model = NoisyStudentClassifier(config(("students", 0))).fit(X, y)
    assert model.n_iter_ == 0 and np.array_equal(model.transduction_, y)
    assert np.array_equal(model.labeled_iter_, np.where(y == -1, -1, 0))


def test_without_unlabelled_rows_it_is_supervised_training(
    sets: tuple[NDArray[np.uint8], NDArray[np.int64]],
) -> None:
    X, y = sets[0][sets[1] != -1], sets[1][sets[1] != -1]
    model = NoisyStudentClassifier(config(("students", 2)), image_shape=(16, 16, 3)).fit(X.reshape(18, -1), y)
    assert (model.n_iter_, model.termination_condition_) == (0, "all_labeled")
    assert not model.labeled_iter_.any() and np.array_equal(model.transduction_, y)
    alone = NoisyStudent(config(("students", 0))).fit((X, y.tolist()))
    expected = alone.predict_proba(sets[0])[
        :, [alone.classes_.tolist().index(str(k)) for k in model.classes_]
    ]
    assert np.array_equal(model.predict_proba(sets[0].reshape(42, -1)), expected), "rows of the same pixels"


def test_pixels_of_any_range_are_scaled_to_bytes(sets: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    X, y = sets
    supervised = config(("students", 0))
    X = X.copy()
    X[0, 0, 0] = 0, 128, 255
    given = y != -1
    model = NoisyStudentClassifier(supervised).fit(X[given], y[given])
    scaled = NoisyStudentClassifier(supervised).fit(X[given] / 255 - 7, y[given])
    assert np.array_equal(model.predict_proba(X), scaled.predict_proba(X / 255 - 7))


def test_rows_are_marked_as_unlabelled_by_a_number_or_by_text(
    model: NoisyStudentClassifier, sets: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    """A list of text and -1 is an array of text, in which -1 is "-1"."""
    X, y = sets
    text = NoisyStudentClassifier(config(("students", 2))).fit(X, np.asarray(y.tolist(), str))
    assert sorted(text.classes_) == sorted(map(str, model.classes_))
    assert np.array_equal(text.transduction_, model.transduction_.astype(str))
    assert np.array_equal(text.predict(X), model.predict(X).astype(str))


@pytest.mark.parametrize(
    "labels, expected",
    [
        ([-1, -1, -1], "has no label but -1"),
        (np.array(["a", None, -1], object), "cannot be sorted"),
        (np.array(["\u00e9", "e\u0301", "c"]), "must be different and not empty"),
        (np.array(["", "a", "b"], object), "must be different and not empty"),
    ],
)
def test_labels_without_a_class_for_each(
    labels: Any, expected: str, sets: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    with pytest.raises(ValueError, match=expected):
        NoisyStudentClassifier(config()).fit(sets[0][:3], labels)


def test_a_fit_that_fails_leaves_no_model_of_an_earlier_one(
    sets: tuple[NDArray[np.uint8], NDArray[np.int64]],
) -> None:
    X, y = sets[0][sets[1] != -1], sets[1][sets[1] != -1]
    model = NoisyStudentClassifier(config(("students", 0))).fit(X, y)
    inner = model.estimator_
    with pytest.raises(ValueError, match="at least two classes"):
        model.fit(X, np.zeros_like(y))
    with pytest.raises(NotFittedError):
        model.predict(X)
    with pytest.raises(InputError, match="at least two classes"):
        inner.fit((X, np.zeros_like(y)))
    with pytest.raises(NotFittedError):
        inner.predict(X)


def test_parameters_can_be_cloned_and_searched() -> None:
    model = NoisyStudentClassifier("demo", students=0, teacher__train__steps=5)
    assert is_classifier(model) and "teacher__train__steps=5" in repr(model).replace("\n", "")
    copy = clone(model).set_params(teacher__train__steps=9, out="runs/x", seed=3)
    assert (copy.out, model.out) == ("runs/x", None)
    changed = {"teacher__train__steps": 9, "out": "runs/x", "seed": 3}
    assert copy.get_params() == model.get_params() | changed
    assert NoisyStudent(**NoisyStudent("demo", students=1).get_params()).get_params()["students"] == 1


@pytest.mark.slow
def test_a_grid_search_sets_fields(tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = tiny.write_recipe(tmp_path_factory.mktemp("search") / "tiny.yaml")
    X = np.concatenate([tiny.pictures(kind, 10, seed=0) for kind in range(3)])
    y = np.repeat(["a", "b", "c"], 10)
    search = GridSearchCV(NoisyStudentClassifier(str(recipe)), {"teacher__train__steps": [1, 12]}, cv=2)
    search.fit(X, y)
    assert search.best_params_ == {"teacher__train__steps": 12}


def test_the_words_mean_what_they_mean_in_scikit_learn() -> None:
    """Its labels stay, so its own rows after each number of iterations are what an iteration kept."""
    X, truth = make_blobs(90, centers=3, cluster_std=2.5, random_state=1)
    y = np.where(np.arange(90) < 12, truth, -1)

    def theirs(threshold: float, iterations: int) -> SelfTrainingClassifier:
        linear = LogisticRegression(C=0.05)
        return SelfTrainingClassifier(linear, threshold=threshold, max_iter=iterations).fit(X, y)

    conditions = set()
    for threshold, max_iter in itertools.product((0.34, 0.6), (1, 2, 10)):
        last = theirs(threshold, max_iter)
        kept = [theirs(threshold, number).transduction_[12:] for number in range(1, last.n_iter_ + 1)]
        assert np.array_equal(labeled_iterations(kept), last.labeled_iter_[12:])
        assert termination_condition(kept, 78) == last.termination_condition_
        conditions.add(last.termination_condition_)
    assert conditions == {"all_labeled", "no_change", "max_iter"}


@given(st.lists(st.lists(st.integers(-1, 2), min_size=5, max_size=5), min_size=1, max_size=6))
def test_an_image_counts_from_the_iteration_since_which_it_is_kept(rows: list[list[int]]) -> None:
    kept = [np.array(row) for row in rows]
    for row, since in enumerate(labeled_iterations(kept)):
        assert (since == -1) == (kept[-1][row] == -1)
        if since != -1:
            assert all(classes[row] != -1 for classes in kept[since - 1 :])
            assert since == 1 or kept[since - 2][row] == -1


EXCEPTIONS = {
    "check_classifiers_classes": "-1 marks an unlabelled row, as in SelfTrainingClassifier, which the check "
    "excepts by its name",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_checks_of_an_estimator() -> None:
    plain = [(f"teacher.model.{noise}", 0.0) for noise in ("dropout", "stochastic_depth")]
    # Rows of features are no pictures: what moves or mirrors pixels would change what they mean.
    still = [("crop", "none"), ("flip", False), ("randaugment", None)]
    lengths = [
        ("steps", 100),
        ("batch_size", 16),
        ("lr", 0.3),
        ("eval_steps", 100),
        ("checkpoint_steps", 100),
    ]
    overrides = [
        *plain,
        *((f"teacher.augment.{name}", value) for name, value in still),
        *((f"teacher.train.{name}", value) for name, value in lengths),
    ]
    results = check_estimator(
        NoisyStudentClassifier(config(*overrides)), expected_failed_checks=EXCEPTIONS, on_fail=None
    )
    wrong = {one["check_name"]: one["exception"] for one in results if one["status"] == "failed"}
    assert wrong == {}
    assert {one["check_name"] for one in results if one["status"] == "xfail"} == set(EXCEPTIONS)
    assert sum(one["status"] == "passed" for one in results) >= 45
