"""Distances of ranks: the test vectors V6 and V7, and the definition itself."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from noisystudent.errors import InputError
from noisystudent.robustness import measures
from noisystudent.robustness.measures import PERTURBATIONS

FIRST = (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)
V6 = [
    (FIRST, 0, Fraction(0)),
    ((9, 10, 8, 7, 6, 5, 4, 3, 2, 1), 2, Fraction(3, 4)),
    ((10, 9, 8, 7, 5, 6, 4, 3, 2, 1), 1, Fraction(11, 900)),
    ((6, 10, 9, 8, 7, 5, 4, 3, 2, 1), 8, Fraction(4091, 3600)),
    ((0, 9, 8, 7, 6, 5, 4, 3, 2, 1), 9, Fraction(317579, 254016)),
    (FIRST[::-1], 15, Fraction(8747387, 6350400)),
    ((10, 9, 8, 7, 6, 4, 5, 3, 2, 1), 0, Fraction(13, 1764)),
    ((4, 9, 8, 7, 6, 5, 10, 3, 2, 1), 5, Fraction(48, 49)),
]


@pytest.mark.parametrize(("second", "distance", "weighted"), V6)
def test_v6(second: tuple[int, ...], distance: int, weighted: Fraction) -> None:
    logits = np.array([[FIRST, second]], dtype=np.float64)
    assert measures.t5d(measures.top5(logits), noise=False) == distance
    assert measures.zipf(logits, noise=False) == pytest.approx(float(weighted), abs=1e-12)


def test_v6_equal_logits_keep_the_order_of_classes() -> None:
    logits = np.zeros((1, 2, 10))
    assert measures.top5(logits)[0, 0].tolist() == [0, 1, 2, 3, 4]
    assert measures.t5d(measures.top5(logits), noise=False) == 0
    assert measures.zipf(logits, noise=False) == 0


V7 = np.array(
    [
        [
            [6, 5, 4, 3, 2, 1, 0, -1],
            [5, 6, 4, 3, 2, 1, 0, -1],
            [5, 6, 4, 3, 2, 1, 0, 9],
            [6, 5, 4, 3, 2, 1, 0, -1],
        ],
        [
            [0, 1, 2, 3, 4, 5, 6, 7],
            [0, 1, 2, 3, 4, 5, 7, 6],
            [7, 6, 5, 4, 3, 2, 1, 0],
            [0, 0, 0, 0, 1, 1, 1, 1],
        ],
    ],
    dtype=np.float64,
)


def test_v7() -> None:
    top = measures.top5(V7)
    assert top[..., 0].tolist() == [[0, 1, 7, 0], [7, 6, 0, 4]]
    each = {noise: [measures.t5d(top[[row]], noise) for row in (0, 1)] for noise in (False, True)}
    assert each[False] == pytest.approx([16 / 3, 11])
    assert each[True] == pytest.approx([7 / 3, 25 / 3])
    assert measures.t5d(top, noise=False) == pytest.approx(8.1666667, abs=5e-8)
    assert measures.t5d(top, noise=True) == pytest.approx(5.3333333, abs=5e-8)
    assert measures.zipf(V7, noise=False) == pytest.approx(1.0026814058956917, abs=1e-12)
    assert measures.zipf(V7, noise=True) == pytest.approx(0.7929065098261526, abs=1e-12)


def official_distance(first: NDArray[Any], second: NDArray[Any]) -> int:
    """The double sum of the definition, over ordinal ranks of scipy."""
    ranks = [stats.rankdata(-row, "ordinal").astype(int) for row in (first, second)]  # scipy 1.18: floats
    moved = ranks[1][np.argsort(ranks[0])]
    total = 0
    for i in range(1, min(5, len(first)) + 1):
        low, high = min(i, moved[i - 1]), max(i, moved[i - 1])
        total += sum(1 <= j - 1 <= 5 for j in range(low + 1, high + 1))
    return total


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.booleans())
def test_top5_distance_is_the_definitions_double_sum(seed: int, classes: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 4 if tied else 10_000, (2, 1, 2, classes)).astype(np.float64)
    found = measures.top5_distances(measures.top5(logits[0]), measures.top5(logits[1]))
    expected = [official_distance(logits[0, 0, frame], logits[1, 0, frame]) for frame in (0, 1)]
    assert found[0].tolist() == expected
    assert found.min() >= 0 and found.max() <= measures.MOST_DISPLACED


def test_the_largest_distance() -> None:
    first, second = np.arange(5), np.array([3, 4, 7, 8, 9])
    assert measures.top5_distances(first, second) == measures.MOST_DISPLACED
    sixth = measures.DISPLACED
    distances = [
        sum(abs(rank - i) for i, rank in enumerate(ranks, start=1))
        for ranks in product(range(1, sixth + 1), repeat=5)
        if len(set(ranks) - {sixth}) == 5 - ranks.count(sixth)  # no two classes share a rank of the five
    ]
    assert max(distances) == measures.MOST_DISPLACED


def test_mt5d_divides_by_a_table_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "t5d.json"
    path.write_text(json.dumps({name: 2 for name in PERTURBATIONS}), encoding="utf-8")
    by = measures.read_t5d_normalizer(path)
    assert measures.mt5d(dict.fromkeys(PERTURBATIONS, 1.0), by) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "exactly gaussian_noise, shot_noise"),
        (json.dumps({name: 1 for name in PERTURBATIONS[1:]}), "exactly gaussian_noise"),
        (
            json.dumps({name: 0 for name in PERTURBATIONS}),
            "gaussian_noise is 0; a top-5 distance must be above 0",
        ),
        (json.dumps({name: True for name in PERTURBATIONS}), "gaussian_noise is True"),
        (json.dumps({name: 19 for name in PERTURBATIONS}), "gaussian_noise is 19"),
    ],
)
def test_a_bad_table_of_the_users(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t5d.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        measures.read_t5d_normalizer(path)
    with pytest.raises(InputError, match=r"absent\.json cannot be read"):
        measures.read_t5d_normalizer(tmp_path / "absent.json")
