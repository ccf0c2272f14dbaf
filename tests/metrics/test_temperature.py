"""The fitted temperature is the optimum of another solver, and a temperature never changes a class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize

from noisystudent.errors import InputError
from noisystudent.metrics import classification, temperature
from noisystudent.metrics.power import LEAST_IMAGES


def drawn(
    seed: int, count: int, classes: int, sharpness: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits whose true temperature is `sharpness`: labels are drawn from softmax(logits / sharpness)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes)) * sharpness
    labels = (logits / sharpness + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return logits, labels


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exps / exps.sum(axis=1, keepdims=True))


def mean_nll(logits: NDArray[np.float64], labels: NDArray[np.int64], t: float) -> float:
    return float(-np.log(softmax(logits / t)[np.arange(len(labels)), labels]).mean())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(60, 400), st.integers(2, 12), st.floats(0.2, 8))
def test_the_optimum_is_that_of_a_line_search(seed: int, count: int, classes: int, sharpness: float) -> None:
    logits, labels = drawn(seed, count, classes, sharpness)
    found = temperature.optimum(logits, labels)
    assert found is not None
    line = optimize.minimize_scalar(
        lambda log_t: mean_nll(logits, labels, np.exp(log_t)), bounds=(-9, 9), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    assert found == pytest.approx(float(np.exp(line.x)), rel=1e-5)
    shifted = logits + np.random.default_rng(seed).normal(size=(count, 1))
    assert temperature.optimum(shifted, labels) == pytest.approx(found, rel=1e-6)


def test_there_is_no_optimum_for_a_model_without_errors_or_without_skill() -> None:
    logits, labels = drawn(0, 200, 5, 1.0)
    assert temperature.optimum(logits, logits.argmax(axis=1)) is None, "it would be 0"
    assert temperature.optimum(logits, logits.argmin(axis=1)) is None, "it would be infinite"
    for extreme in (logits.argmax(axis=1), logits.argmin(axis=1)):
        assert temperature.fit(softmax(logits), extreme) == 1.0
    few = slice(0, LEAST_IMAGES - 1)
    sharp = softmax(5 * logits)
    assert temperature.fit(sharp[few], labels[few]) == 1.0 != temperature.fit(sharp, labels)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.floats(0.3, 4))
def test_it_is_kept_only_if_the_nll_falls_by_more_than_its_standard_error(seed: int, t: float) -> None:
    logits, labels = drawn(seed, 150, 4, 1.0)
    probs = softmax(logits * t)
    best = float(f"{temperature.optimum(np.log(probs), labels):.4g}")
    falls = [
        -np.log(p[label]) + np.log(q[label])
        for p, q, label in zip(probs, softmax(np.log(probs) / best), labels, strict=True)
    ]
    error = np.std(falls, ddof=1) / len(falls) ** 0.5
    assert temperature.fit(probs, labels) == (best if np.mean(falls) > error else 1.0)


def test_calibrated_logits_keep_temperature_one_and_sharp_ones_are_mended() -> None:
    calibrated = [drawn(seed, 500, 6, 1.0) for seed in range(60)]
    kept = [temperature.fit(softmax(logits), labels) == 1.0 for logits, labels in calibrated]
    # The fall is above its standard error where the fit is two of its standard errors from 1: one in twenty.
    assert np.mean(kept) > 0.85
    logits, labels = drawn(1, 4000, 6, 3.0)
    assert temperature.fit(softmax(logits), labels) == pytest.approx(3, rel=0.06)
    before, after = (classification.ece(p, labels, 15) for p in (softmax(logits), softmax(logits / 3)))
    assert after < 0.03 < 0.1 < before


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.floats(0.05, 20))
def test_a_temperature_never_changes_the_class(seed: int, t: float) -> None:
    probs = softmax(np.random.default_rng(seed).normal(0, 3, (50, 7))).astype(np.float32)
    found = temperature.scaled(probs, t)
    np.testing.assert_array_equal(found.argmax(axis=1), probs.argmax(axis=1))
    np.testing.assert_allclose(found, softmax(np.log(probs.astype(float)) / t), atol=1e-12)


def test_temperature_one_leaves_the_bits_alone() -> None:
    probs = softmax(np.random.default_rng(0).normal(0, 3, (50, 7))).astype(np.float32)
    assert temperature.scaled(probs, 1.0) is probs


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_temperature_is_one_line(bad: float) -> None:
    with pytest.raises(InputError, match="the temperature is"):
        temperature.scaled(np.full((2, 2), 0.5), bad)
