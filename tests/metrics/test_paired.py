"""Paired statistics: against brute force, closed formulas and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from noisystudent.config import EvaluateConfig
from noisystudent.errors import InputError
from noisystudent.metrics import paired

CONFIG = EvaluateConfig()


def hits(wins: int, losses: int, both: int, neither: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    first = [True] * wins + [False] * losses + [True] * both + [False] * neither
    second = [False] * wins + [True] * losses + [True] * both + [False] * neither
    return np.array(first), np.array(second)


@pytest.mark.parametrize("counts", [(12, 5, 40, 23), (3, 3, 30, 4), (40, 10, 100, 50), (1, 6, 10, 3)])
def test_the_interval_is_that_of_resampling_images_one_by_one(counts: tuple[int, int, int, int]) -> None:
    first, second = hits(*counts)
    n = len(first)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, n, (20_000, n))
    differences = first.astype(float)[rows].mean(axis=1) - second.astype(float)[rows].mean(axis=1)
    found = paired.compare(first, second, CONFIG, seed=0)
    expected = np.quantile(differences, [0.025, 0.975])
    # Both are Monte Carlo: quantiles on a grid of 1/n may fall one cell apart.
    np.testing.assert_allclose([found["low"], found["high"]], expected, atol=1.5 / n)
    assert found["difference"] == pytest.approx((counts[0] - counts[1]) / n)
    assert (found["wins"], found["losses"], found["n"]) == (counts[0], counts[1], n)


def exact_mcnemar(wins: int, losses: int) -> float:
    """Twice the smaller binomial tail, from binomial coefficients."""
    total = wins + losses
    tail = sum(math.comb(total, k) for k in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2**total))


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_exact_two_sided_sign_test(wins: int, losses: int) -> None:
    found = paired.mcnemar(wins, losses)
    assert found == pytest.approx(exact_mcnemar(wins, losses), rel=1e-9)
    assert found == paired.mcnemar(losses, wins)


def test_mcnemar_with_continuity_correction_agrees_where_counts_are_large() -> None:
    chi2 = (abs(520 - 440) - 1) ** 2 / (520 + 440)
    assert paired.mcnemar(520, 440) == pytest.approx(float(stats.chi2.sf(chi2, 1)), rel=0.01)


@pytest.mark.parametrize(("n", "gain", "churn"), [(300, 0.0, 0.2), (300, 0.04, 0.2), (100, 0.05, 0.3)])
def test_the_interval_covers_the_truth_as_often_as_it_says(n: int, gain: float, churn: float) -> None:
    rng = np.random.default_rng(3)
    config = EvaluateConfig(resamples=400)
    runs, covered = 600, 0
    for seed in range(runs):
        drawn = rng.choice([1, -1, 0], size=n, p=[(churn + gain) / 2, (churn - gain) / 2, 1 - churn])
        found = paired.compare(drawn == 1, drawn == -1, config, seed)
        covered += found["low"] <= gain <= found["high"]
    # 95 % but for three standard errors of 600 runs; the percentile bootstrap is a little short on small n.
    assert 0.92 <= covered / runs <= 0.98


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_neither_the_order_of_images_nor_which_model_is_first_counts(
    wins: int, losses: int, both: int, neither: int, seed: int
) -> None:
    config = EvaluateConfig(resamples=200)
    first, second = hits(wins, losses, both, neither)
    rows = np.random.default_rng(seed).permutation(len(first))
    found = paired.compare(first, second, config, seed)
    assert found == paired.compare(first[rows], second[rows], config, seed)
    swapped = paired.compare(second, first, config, seed)
    assert swapped["difference"] == -found["difference"] and swapped["p_value"] == found["p_value"]
    assert -1 <= found["low"] <= found["high"] <= 1


def test_the_same_seed_gives_the_same_interval_and_a_higher_level_a_wider_one() -> None:
    first, second = hits(30, 20, 100, 50)
    assert paired.compare(first, second, CONFIG, 1) == paired.compare(first, second, CONFIG, 1)
    wide = paired.compare(first, second, EvaluateConfig(level=0.99), 1)
    narrow = paired.compare(first, second, EvaluateConfig(level=0.8), 1)
    assert wide["low"] < narrow["low"] <= narrow["high"] < wide["high"]


def test_a_model_against_itself_is_no_difference() -> None:
    right = np.array([True, False, True])
    expected = dict(difference=0.0, low=0.0, high=0.0, p_value=1.0, wins=0, losses=0, n=3)
    assert paired.compare(right, right, CONFIG, 0) == expected


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.ones(3, bool), np.ones(2, bool), r"\(3,\) and \(2,\)"),
        (np.ones(0, bool), np.ones(0, bool), r"N >= 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    first: NDArray[np.bool_], second: NDArray[np.bool_], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        paired.compare(first, second, CONFIG, 0)


def test_what_cannot_be_configured_is_refused() -> None:
    with pytest.raises(InputError, match=r"evaluate\.resamples is 0"):
        EvaluateConfig(resamples=0)
    with pytest.raises(InputError, match=r"evaluate\.level is 95"):
        EvaluateConfig(level=95)


def test_over_seeds_is_students_t_interval() -> None:
    differences = [0.8, 1.4, 0.3, 1.1, 0.9]
    found = paired.paired_over_seeds(differences, 0.95)
    reference = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(0.9)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert paired.paired_over_seeds([0.5, 0.5], 0.9) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("differences", "level"), [([], 0.95), ([1.0], 0.95), ([1.0, 2.0], 1.0)])
def test_over_seeds_needs_two_seeds_and_a_level(differences: list[float], level: float) -> None:
    with pytest.raises(InputError):
        paired.paired_over_seeds(differences, level)
