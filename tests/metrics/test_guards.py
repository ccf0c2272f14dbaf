"""Guard rails: who guesses is caught, who does not is let through."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from noisystudent.metrics import guards


def one_hot(predicted: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    return np.eye(classes, dtype=np.float32)[predicted]


def hits(right: int, total: int, classes: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Balanced labels and predictions that are right on exactly `right` of them."""
    labels = np.arange(total) % classes
    return labels, one_hot(np.where(np.arange(total) < right, labels, (labels + 1) % classes), classes)


@pytest.mark.parametrize(("total", "classes"), [(50, 10), (100, 2), (1000, 100)])
def test_the_threshold_it_names_is_where_it_turns(total: int, classes: int) -> None:
    passed, text = guards.teacher_above_chance(*hits(total // classes, total, classes))
    assert not passed
    needed = int(text.split("to be above chance, ")[1].split(" ")[0])
    assert not guards.teacher_above_chance(*hits(needed - 1, total, classes))[0]
    assert guards.teacher_above_chance(*hits(needed, total, classes))[0]
    assert (
        stats.binom.sf(needed - 1, total, 1 / classes)
        <= 0.01
        < stats.binom.sf(needed - 2, total, 1 / classes)
    )


def test_a_constant_teacher_never_passes() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    passed, text = guards.teacher_above_chance(labels, one_hot(np.zeros(100, dtype=np.int64), 2))
    assert not passed and "90 of 100 val images correctly (90.0%), a constant guess 90.0%" in text


def test_guessing_teachers_pass_one_time_in_a_hundred_at_most() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(200) % 5
    passed = sum(guards.teacher_above_chance(labels, rng.dirichlet(np.ones(5), 200))[0] for _ in range(400))
    assert passed <= stats.binom.isf(1e-4, 400, 0.01)


def test_a_val_set_that_cannot_decide_is_reported() -> None:
    for labels in (np.zeros(50, dtype=np.int64), np.array([0, 1])):
        passed, text = guards.teacher_above_chance(labels, one_hot(labels, 2))
        assert not passed and "the val images are too few for the test" in text
        _, text = guards.teacher_above_chance(labels, one_hot(labels, 2), "labels out of fold")
        assert "the labels out of fold are too few for the test" in text


def test_effective_classes_counts_equally_frequent_classes() -> None:
    assert guards.effective_classes(np.arange(12) % 4, 10) == pytest.approx(4)
    assert guards.effective_classes(np.zeros(5, dtype=np.int64), 10) == pytest.approx(1)
    assert 1 < guards.effective_classes(np.array([0] * 99 + [1]), 2) < 1.1


def test_collapse_is_measured_against_the_labels() -> None:
    labels = np.arange(100) % 10
    text = guards.collapsed(one_hot(labels % 4, 10), labels)
    assert text is not None and "as varied as 3.9" in text and "the labels as 10.0" in text
    assert guards.collapsed(one_hot(labels % 6, 10), labels) is None
    assert guards.collapsed(one_hot(labels, 10), labels) is None


def test_few_or_unbalanced_images_are_no_collapse() -> None:
    rng = np.random.default_rng(2)
    few = rng.permutation(1000)[:100]
    assert guards.collapsed(one_hot(few, 1000), few) is None  # 100 images show at most 100 of 1,000 classes
    tail = np.minimum(rng.geometric(0.5, 500) - 1, 9)
    assert guards.collapsed(one_hot(tail, 10), tail) is None
    assert guards.collapsed(one_hot(np.zeros(500, dtype=np.int64), 10), tail) is not None


@pytest.mark.parametrize("is_teacher", [True, False])
def test_a_good_model_has_no_fault(is_teacher: bool) -> None:
    labels, probs = hits(90, 100, 10)
    probs = probs * np.linspace(0.5, 1, 100)[:, None].astype(np.float32)
    assert guards.fault(labels, probs, is_teacher=is_teacher) is None


def test_a_student_may_be_weak_but_not_worse_than_a_constant_guess() -> None:
    for right, total, classes in ((9, 100, 10), (49, 100, 2)):
        text = guards.fault(*hits(right, total, classes), is_teacher=False)
        assert text is not None and f"{right} of {total}" in text and "worse than chance" in text
        assert guards.fault(*hits(right + 1, total, classes), is_teacher=False) is None
        assert guards.fault(*hits(right + 1, total, classes), is_teacher=True) is not None


@pytest.mark.parametrize("confidence", [1.0, 0.4])
def test_equal_confidences_are_a_fault_of_a_teacher_with_errors(confidence: float) -> None:
    def predictions(right: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        labels, best = hits(right, 100, 10)
        return labels, best * np.float32(confidence) + np.float32((1 - confidence) / 9) * (1 - best)

    labels, probs = predictions(90)
    text = guards.fault(labels, probs, is_teacher=True)
    assert text is not None and "100 val images" in text and "10 predictions are wrong" in text
    assert guards.fault(labels, probs, is_teacher=False) is None, "it labels nothing"
    assert guards.fault(*predictions(100), is_teacher=True) is None, "there is nothing to tell apart"
    probs[0] = np.eye(10, dtype=np.float32)[labels[0]] * 0.9 + 0.01
    assert guards.fault(labels, probs, is_teacher=True) is None


@pytest.mark.parametrize("is_teacher", [True, False])
def test_the_accuracy_on_fewer_than_fifty_images_is_no_fault(is_teacher: bool) -> None:
    labels, probs = hits(0, 49, 7)
    sure = np.linspace(0.5, 1, 50)[:, None].astype(np.float32)  # confidences differ, and all classes occur
    assert guards.at_chance(labels, probs * sure[:49], is_teacher=is_teacher) is not None
    assert guards.fault(labels, probs * sure[:49], is_teacher=is_teacher) is None
    labels, probs = hits(0, 50, 7)
    assert guards.fault(labels, probs * sure, is_teacher=is_teacher) is not None
    constant = np.tile(np.eye(7, dtype=np.float32)[0], (12, 1))
    few = guards.fault(np.arange(12) % 7, constant, is_teacher=is_teacher)
    assert few is not None and "collapsed" in few
