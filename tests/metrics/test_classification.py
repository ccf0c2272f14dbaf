"""Metrics agree with torchmetrics, scikit-learn and published vectors, and obey their laws."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from noisystudent.errors import InputError
from noisystudent.metrics import classification

torch.set_num_threads(1)

Case = tuple[classification.Floats, NDArray[np.int64]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Probabilities (N, K), from almost uniform to almost one-hot, and labels they know something about."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, classes = draw(st.integers(1, 60)), draw(st.integers(2, 12))
    labels = rng.integers(0, classes, n)
    logits = draw(st.floats(0.1, 3.0)) * rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += 1
    return softmax(logits), labels


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float32)


def from_confidence(confidence: NDArray[np.float64], right: NDArray[np.bool_], classes: int = 2000) -> Case:
    """Probabilities (N, K) of a given confidence in class 0, and labels that make it right or wrong."""
    probs = np.repeat((1 - confidence)[:, None] / (classes - 1), classes, axis=1)
    probs[:, 0] = confidence
    return probs, np.where(right, 0, 1)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_agrees_with_torchmetrics_and_scikit_learn(case: Case) -> None:
    probs, labels = case
    classes = probs.shape[1]
    tensors = torch.from_numpy(probs), torch.from_numpy(labels)
    for k in range(1, classes + 1):
        expected = multiclass_accuracy(*tensors, classes, average="micro", top_k=k)
        assert classification.top_k(probs, labels, k) == pytest.approx(float(expected), abs=1e-6)
    for bins in (1, 10, 15):
        expected = multiclass_calibration_error(*tensors, classes, n_bins=bins, norm="l1")
        assert classification.ece(probs, labels, bins) == pytest.approx(float(expected), abs=1e-6)
    exact = probs / probs.sum(axis=1, keepdims=True, dtype=np.float64)
    expected_nll = sklearn_metrics.log_loss(labels, exact, labels=range(classes))
    assert classification.nll(probs, labels) == pytest.approx(expected_nll, abs=1e-6)
    one_hot = np.eye(classes)[labels]
    assert classification.brier(probs, labels) == pytest.approx(
        np.square(probs - one_hot).sum(axis=1).mean(), abs=1e-6
    )
    predicted = probs.argmax(axis=1)
    table = classification.confusion(probs, labels)
    assert (table == sklearn_metrics.confusion_matrix(labels, predicted, labels=range(classes))).all()


def test_brier_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    probs = rng.dirichlet(np.ones(4), 200)
    expected = sklearn_metrics.brier_score_loss(labels, probs, labels=range(4), scale_by_half=False)
    assert classification.brier(probs, labels) == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1))
def test_neither_the_order_of_images_nor_the_names_of_classes_count(case: Case, seed: int) -> None:
    probs, labels = case
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(len(labels)), rng.permutation(probs.shape[1])
    shuffled, renamed = probs[rows][:, columns], np.argsort(columns)[labels[rows]]
    for metric in (classification.nll, classification.brier, partial(classification.ece, bins=15)):
        assert metric(shuffled, renamed) == pytest.approx(metric(probs, labels), abs=1e-9)
    assert classification.top_k(shuffled, renamed, 3) == classification.top_k(probs, labels, 3)


@settings(max_examples=30, deadline=None)
@given(cases())
def test_reliability_adds_up(case: Case) -> None:
    probs, labels = case
    table = classification.reliability(probs, labels, 15)
    assert table.count.sum() == len(labels)
    assert (table.count * table.accuracy).sum() / len(labels) == pytest.approx(
        classification.top_k(probs, labels, 1)
    )
    assert (table.count * table.confidence).sum() / len(labels) == pytest.approx(
        probs.max(axis=1).mean(), abs=1e-6
    )
    edges = np.linspace(0, 1, 16)
    filled = table.count > 0
    assert (table.confidence[filled] > edges[:-1][filled]).all()
    assert (table.confidence[filled] <= edges[1:][filled]).all()
    assert (table.confidence[~filled] == 0).all() and (table.accuracy[~filled] == 0).all()


def test_ece_of_published_vectors() -> None:
    confidence = (
        np.array([99, 97, 93, 90, 85, 81, 72, 70, 66, 61, 55, 50, 44, 41, 34, 30, 25, 21, 12, 10]) / 100
    )
    right = np.array([1, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0], dtype=bool)
    probs, labels = from_confidence(confidence, right)
    assert classification.ece(probs, labels, 15) == pytest.approx(0.22)
    assert classification.ece(probs, labels, 10) == pytest.approx(0.151)
    table = classification.reliability(probs, labels, 15)
    assert np.abs(table.accuracy - table.confidence).max() == pytest.approx(0.5)


def test_ece_of_the_generated_vector() -> None:
    n, drawn = 450, 777
    confidence, right = np.empty(n), np.empty(n, dtype=bool)
    for i in range(n):
        drawn = (1103515245 * drawn + 12345) % 2**31
        confidence[i] = (2 * ((73 * i) % 450) + 1) / 900
        right[i] = drawn / 2**31 < 0.8 * confidence[i]
    assert right.sum() == 184
    assert classification.ece(*from_confidence(confidence, right), 15) == pytest.approx(0.11777777777777777)


def test_bins_are_open_below_and_closed_above() -> None:
    probs, labels = from_confidence(np.array([0.5, 0.500001, 1.0]), np.array([True, True, True]))
    assert classification.reliability(probs, labels, 2).count.tolist() == [1, 2]


def test_perfect_and_worst_predictions() -> None:
    labels = np.arange(6) % 3
    perfect = np.eye(3, dtype=np.float32)[labels]
    worst = np.eye(3, dtype=np.float32)[(labels + 1) % 3]
    assert (
        classification.top_k(perfect, labels, 1),
        classification.nll(perfect, labels),
        classification.brier(perfect, labels),
    ) == (1, 0, 0)
    assert classification.ece(perfect, labels, 15) == 0
    assert classification.top_k(worst, labels, 1) == 0
    assert classification.brier(worst, labels) == 2
    assert classification.ece(worst, labels, 15) == 1
    assert classification.nll(worst, labels) == pytest.approx(-np.log(np.finfo(np.float32).tiny))


def test_top_k_counts_ties_as_argmax_does_and_k_stops_at_the_number_of_classes() -> None:
    probs = np.full((4, 3), 1 / 3, dtype=np.float32)
    labels = np.array([0, 1, 2, 2])
    assert [classification.top_k(probs, labels, k) for k in (1, 2, 3, 5)] == [0.25, 0.5, 1.0, 1.0]
    assert classification.top_k(probs, labels, 1) == (probs.argmax(axis=1) == labels).mean()


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((0, 3), [], r"probs have shape \(0, 3\)"),
        ((2, 3), [0], r"and labels \(1,\)"),
        ((6,), [0, 1, 2, 0, 1, 2], r"probs have shape \(6,\)"),
        ((2, 3), [0, 3], "from 0 to 3; with 3 classes"),
        ((2, 3), [-1, 0], "from -1 to 0"),
    ],
)
def test_arrays_no_metric_is_defined_on_are_refused(
    shape: tuple[int, ...], labels: list[int], message: str
) -> None:
    probs = np.full(shape, 1 / 3, dtype=np.float32)
    with pytest.raises(InputError, match=message):
        classification.nll(probs, np.array(labels, dtype=np.int64))


def test_bins_must_be_at_least_one() -> None:
    with pytest.raises(InputError, match=r"evaluate\.ece_bins is 0"):
        classification.ece(np.ones((1, 1), dtype=np.float32), np.zeros(1, dtype=np.int64), 0)
