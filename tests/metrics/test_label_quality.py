"""Suspected labels are those of cleanlab, and all wrong ones where the classes are easy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisystudent.metrics.label_quality import self_confidence, suspected, thresholds


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1_000), classes=st.integers(2, 6), sharp=st.sampled_from((0.3, 1.0, 5.0)))
def test_suspected_labels_agree_with_cleanlab(seed: int, classes: int, sharp: float) -> None:
    cleanlab = pytest.importorskip("cleanlab.filter")
    rank = pytest.importorskip("cleanlab.rank")
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, 60)])
    truth = np.where(rng.random(len(labels)) < 0.2, rng.integers(0, classes, len(labels)), labels)
    probs = rng.dirichlet(np.full(classes, sharp), len(labels)) + np.eye(classes)[truth]
    probs = (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)
    expected = cleanlab.find_label_issues(labels, probs, filter_by="confident_learning", n_jobs=1)
    assert np.array_equal(suspected(probs, labels) >= 0, expected)
    scores = rank.get_label_quality_scores(labels, probs, method="self_confidence", adjust_pred_probs=False)
    assert np.allclose(self_confidence(probs, labels), scores)


def test_wrong_labels_of_sure_predictions_are_found_and_no_other() -> None:
    truth = np.repeat(np.arange(3), 20)
    labels = truth.copy()
    labels[[0, 25, 50]] = [1, 2, 0]
    probs = np.full((60, 3), 0.05, np.float32) + 0.85 * np.eye(3, dtype=np.float32)[truth]
    assert np.flatnonzero(suspected(probs, labels) >= 0).tolist() == [0, 25, 50]
    assert suspected(probs, labels)[[0, 25, 50]].tolist() == [0, 1, 2]


def test_a_class_without_labels_is_never_meant() -> None:
    probs = np.array([[0.1, 0.1, 0.8], [0.2, 0.7, 0.1]], np.float32)
    assert np.isinf(thresholds(probs, np.array([0, 1]))[2])
    assert (suspected(probs, np.array([0, 1])) != 2).all()
