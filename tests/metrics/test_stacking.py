"""Weights of averaged models: laws of stacking, and of the average itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize

from noisystudent.metrics.classification import nll
from noisystudent.metrics.stacking import agreement, average, stacked

Probs = NDArray[np.float32]


def models(count: int, seed: int, images: int = 80) -> tuple[list[Probs], NDArray[np.int64]]:
    """Models that know more or less of the labels of four classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, images)
    logits = rng.normal(size=(count, images, 4)) + np.eye(4)[labels] * rng.uniform(0, 3, (count, 1, 1))
    probs = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return list(probs.astype(np.float32)), labels


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 5), seed=st.integers(0, 999))
def test_no_other_weights_have_a_smaller_nll_on_val(count: int, seed: int) -> None:
    probs, labels = models(count, seed)
    weights = stacked(probs, labels)
    assert sum(weights) == pytest.approx(1) and min(weights) >= 0
    best = nll(average(probs, weights), labels)
    others = [*np.eye(count), np.ones(count), *np.random.default_rng(seed).dirichlet(np.ones(count), 20)]
    assert all(best <= nll(average(probs, other), labels) + 1e-5 for other in others)


def test_two_weights_agree_with_scipy() -> None:
    probs, labels = models(2, 3, images=400)
    found = optimize.minimize_scalar(
        lambda w: nll(average(probs, (w, 1 - w)), labels), bounds=(0, 1), method="bounded"
    )
    assert stacked(probs, labels)[0] == pytest.approx(found.x, abs=2e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_the_order_of_the_models_does_not_matter(seed: int) -> None:
    probs, labels = models(3, seed)
    weights, turned = stacked(probs, labels), stacked(probs[::-1], labels)
    assert weights == pytest.approx(turned[::-1], abs=2e-4)


def test_equal_weights_where_nothing_can_be_chosen() -> None:
    probs, labels = models(3, 0, images=49)
    assert stacked(probs, labels) == pytest.approx((1 / 3,) * 3)
    same, labels = models(1, 0)
    assert stacked([*same, *same], labels) == (0.5, 0.5)


def test_an_average_is_the_mean_and_one_model_is_itself() -> None:
    probs, _ = models(3, 1)
    assert np.abs(average(probs, (2, 2, 2)) - np.mean(probs, axis=0)).max() < 1e-6
    assert np.array_equal(average(probs[:1], (0.3,)), probs[0])
    mean = average(probs, (1, 2, 5))
    assert np.abs(mean - (probs[0] + 2 * probs[1] + 5 * probs[2]) / 8).max() < 1e-6
    votes = np.stack([each.argmax(axis=1) == mean.argmax(axis=1) for each in probs])
    assert agreement(probs, mean) == pytest.approx(votes.mean(axis=0))
    assert (agreement([probs[0]] * 2, average([probs[0]] * 2, (1, 1))) == 1).all()
