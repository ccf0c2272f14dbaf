"""RMS calibration, AURRA and ReaL accuracy: the test vectors V8, V9 and V11, the official code, and laws."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from noisystudent.errors import InputError
from noisystudent.metrics import classification

Case = tuple[NDArray[np.float64], NDArray[np.int64]]


def probs_of(confidence: NDArray[np.float64], right: NDArray[np.bool_], classes: int = 1000) -> Case:
    """Probabilities (N, K) of a given confidence in class 0, and labels that make it right or wrong."""
    probs = np.repeat((1 - confidence)[:, None] / (classes - 1), classes, axis=1)
    probs[:, 0] = confidence
    return probs, np.where(right, 0, 1)


def v9() -> Case:
    count, drawn = 450, 777
    confidence, right = np.empty(count), np.empty(count, dtype=bool)
    for i in range(count):
        drawn = (1103515245 * drawn + 12345) % 2**31
        confidence[i] = (2 * ((73 * i) % 450) + 1) / 900
        right[i] = drawn / 2**31 < 0.8 * confidence[i]
    assert right.sum() == 184
    return probs_of(confidence, right)


def test_v9() -> None:
    probs, labels = v9()
    assert classification.ece(probs, labels, 15) == pytest.approx(0.11777777777777777, abs=1e-12)
    assert classification.rms_official(probs, labels) == pytest.approx(0.056979287744095386, abs=1e-12)
    assert classification.rms_calibration(probs, labels) == pytest.approx(0.11851851851851855, abs=1e-12)
    assert classification.aurra(probs, labels) == pytest.approx(0.6018362530042821, abs=1e-12)
    table = classification.adaptive_reliability(probs, labels)
    assert table.count.tolist() == [100, 100, 100, 150]
    gaps = table.count * np.abs(table.accuracy - table.confidence) / table.count.sum()
    assert gaps[:-1].sum() == pytest.approx(0.04296296296296297, abs=1e-12)


def test_v11() -> None:
    labels = [[3, 5], [], [7], [1, 2, 9], [4]]
    assert classification.real_accuracy(np.array([5, 0, 2, 9, 4]), labels) == 0.75


def by_hand(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[float, float]:
    """RMS over bins of 100 and AURRA, for confidences that all differ."""
    order = np.argsort(confidence)
    edges = [100 * i for i in range(max(len(order) // 100, 1))] + [len(order)]
    bins = [order[low:high] for low, high in pairwise(edges)]
    squares = [len(rows) * (confidence[rows].mean() - right[rows].mean()) ** 2 for rows in bins]
    curve = [right[order[::-1][:k]].mean() for k in range(1, len(order) + 1)]
    return math.sqrt(sum(squares) / len(order)), float(np.mean(curve))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 420))
def test_against_the_definition_and_in_any_order(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, right = rng.uniform(0.3, 1, count), rng.random(count) < 0.6
    probs, labels = probs_of(confidence, right, classes=10)
    rms, aurra = by_hand(confidence, right)
    assert classification.rms_calibration(probs, labels) == pytest.approx(rms, abs=1e-12)
    assert classification.aurra(probs, labels) == pytest.approx(aurra, abs=1e-12)
    rows = rng.permutation(count)
    assert classification.aurra(probs[rows], labels[rows]) == pytest.approx(aurra, abs=1e-12)


def test_equal_confidences_count_the_same_in_any_order() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(300) < 0.5
    probs, labels = probs_of(np.where(rng.random(300) < 0.7, 1.0, 0.9), right, classes=10)
    rows = rng.permutation(300)
    for metric in (classification.rms_calibration, classification.rms_official, classification.aurra):
        assert metric(probs[rows], labels[rows]) == pytest.approx(metric(probs, labels), abs=1e-12)


def test_one_level_of_confidence_is_accuracy() -> None:
    probs, labels = probs_of(np.full(8, 0.9), np.arange(8) < 6, classes=10)
    assert classification.aurra(probs, labels) == pytest.approx(0.75)
    assert classification.rms_calibration(probs, labels) == pytest.approx(0.15)


def test_the_official_sum_of_one_bin_is_empty() -> None:
    probs, labels = probs_of(np.linspace(0.5, 0.9, 199), np.ones(199, dtype=bool), classes=10)
    with pytest.raises(InputError, match=r"at least two bins of 100 images, .* there are 199 images"):
        classification.rms_official(probs, labels)
    with pytest.raises(InputError, match="calibration error is 0; it must be at least 1 image"):
        classification.rms_calibration(probs, labels, 0)


@given(st.lists(st.tuples(st.integers(0, 5), st.sets(st.integers(0, 5))), min_size=1, max_size=30))
def test_real_accuracy_is_plain_accuracy_over_the_images_that_have_labels(
    rows: list[tuple[int, set[int]]],
) -> None:
    predictions = np.array([one for one, _ in rows])
    kept = [one in labels for one, labels in rows if labels]
    if not kept:
        with pytest.raises(InputError, match="no image has a ReaL label"):
            classification.real_accuracy(predictions, [labels for _, labels in rows])
        return
    assert classification.real_accuracy(predictions, [labels for _, labels in rows]) == np.mean(kept)
    single = [{int(one)} for one in predictions]
    assert classification.real_accuracy(predictions, single) == 1


def test_every_image_needs_a_label_set() -> None:
    with pytest.raises(InputError, match="1 label sets for 2 predictions"):
        classification.real_accuracy(np.array([0, 1]), [[0]])
