"""The expected share of right labels above a confidence, against a straight-line version and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisystudent.errors import InputError
from noisystudent.metrics.precision import (
    CURVE,
    Precision,
    by_threshold,
    curve,
    precision_above,
    widest,
    wilson,
)

images = st.lists(st.tuples(st.integers(0, 20).map(lambda k: k / 20), st.booleans()), max_size=40)


@given(images, st.integers(0, 21).map(lambda k: k / 20))
def test_counts_equal_a_straight_line_version(pairs: list[tuple[float, bool]], threshold: float) -> None:
    confidence, right = np.array([c for c, _ in pairs]), np.array([r for _, r in pairs], bool)
    kept = [r for c, r in pairs if c >= threshold]
    for given_as in (threshold, np.full(len(pairs), threshold)):
        found = precision_above(confidence, right, given_as)
        assert (found.images, found.kept, found.right) == (len(pairs), len(kept), sum(kept))
    low, high = found.interval
    if found.share is None:
        assert not kept and (low, high) == (0, 1) and found.too_few
    else:
        assert 0 <= low <= found.share <= high <= 1


@given(images)
def test_a_higher_threshold_keeps_no_more(pairs: list[tuple[float, bool]]) -> None:
    confidence, right = np.array([c for c, _ in pairs]), np.array([r for _, r in pairs], bool)
    rows = curve(confidence, right)
    assert [row["threshold"] for row in rows] == list(CURVE)
    assert rows[0]["kept"] == len(pairs) and rows[0]["right"] == right.sum()
    assert all(a["kept"] >= b["kept"] and a["right"] >= b["right"] for a, b in itertools.pairwise(rows))


@pytest.mark.parametrize("hits, n", [(0, 5), (5, 5), (31, 40), (997, 1000)])
def test_wilson_is_the_published_formula(hits: int, n: int) -> None:
    z, p = 1.959963984540054, hits / n  # Wilson 1927
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = ((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))
    np.testing.assert_allclose(wilson(hits, n, 0.95), expected, atol=1e-12)


def test_the_interval_holds_the_share_of_a_pool_as_often_as_it_says() -> None:
    """Val and pool of a calibrated teacher: a label with confidence p is right with probability p."""
    rng, held = np.random.default_rng(0), 0
    pool = rng.beta(2, 1, 200_000)
    share = pool[pool >= 0.6].mean()
    for _ in range(1_000):
        confidence = rng.beta(2, 1, 80)
        low, high = precision_above(confidence, rng.random(80) < confidence, 0.6).interval
        held += low <= share <= high
    assert 0.93 <= held / 1_000 <= 0.97


def test_excluded_images_are_not_kept() -> None:
    threshold = np.array([0.5, np.inf, 0.5])
    found = precision_above(np.array([0.6, 1.0, 0.4]), np.array([True, True, True]), threshold)
    assert (found.kept, found.right) == (1, 1)
    with pytest.raises(InputError, match=r"both must be \(N,\)"):
        precision_above(np.zeros(3), np.zeros(2, bool), 0.5)


def test_the_sentence_has_the_interval_and_says_when_val_is_too_small() -> None:
    assert Precision(2_000, 1_000, 800).sentence() == (
        "about 80.0% of the kept labels are expected to be right (95% interval 77.4% to 82.4%, from 1,000 of"
        " 2,000 val images with as much confidence)"
    )
    assert Precision(40, 10, 8).sentence().endswith("with as much confidence); these are too few to tell")
    assert Precision(40, 0, 0).sentence().startswith("none of the 40 val images has as much confidence")
    assert "(80% interval" in Precision(90, 60, 50, level=0.8).sentence()


def test_the_widest_choice_is_the_one_that_is_surely_precise() -> None:
    choices = {0.3: Precision(200, 180, 120), 0.5: Precision(200, 120, 110), 0.9: Precision(200, 60, 60)}
    assert widest(choices, 0.8) == 0.5, "110 of 120 is surely 80 %, and keeps more than 60"
    assert widest(choices, 0.9) == 0.9
    assert widest(choices, 0.99) == 0.9, "no choice is that precise: the most precise one"
    few = {0.3: Precision(200, 180, 120), 0.9: Precision(200, 19, 19)}
    assert widest(few, 0.99) == 0.3, "19 of 200 images are less than a tenth"
    assert (
        widest({0.9: Precision(200, 19, 10)}, 0.8) is None and widest({0.9: Precision(0, 0, 0)}, 0.8) is None
    )


def test_the_curve_in_words_has_each_set_of_images_once() -> None:
    confidence, right = np.array([0.4, 0.6, 0.85, 0.85]), np.array([False, True, False, True])
    assert by_threshold(curve(confidence, right)) == (
        "50.0% of the 4 from 0 on, 66.7% of the 3 from 0.5 on, 50.0% of the 2 from 0.7 on"
    )
