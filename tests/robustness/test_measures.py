"""Corruption errors and flips: the test vectors V1 to V5 and V13, and the laws behind them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisystudent.errors import InputError
from noisystudent.robustness import anchors, measures, summary
from noisystudent.robustness.measures import ALEXNET, CORRUPTIONS, PERTURBATIONS
from noisystudent.robustness.results import Results

SEVERITIES = range(1, 6)
WITHOUT_FROST = tuple(name for name in CORRUPTIONS if name != "frost")

# resnext101_32x48d_wsl in results/imagenet_c of eminorhan/resnext-wsl: percent, mean over severities.
WSL = (
    36.5868, 38.4364, 39.8076, 39.1164, 54.818, 37.5004, 44.4944, 39.6656,
    37.8044, 29.9156, 18.376, 32.1096, 40.2592, 25.6256, 26.9004,
)  # fmt: skip


def table(rows: Sequence[Sequence[float]]) -> measures.Errors:
    """15 rows of errors of severities 1, 2, …"""
    return {name: dict(enumerate(row, start=1)) for name, row in zip(CORRUPTIONS, rows, strict=True)}


V1 = table([[0.10 + 0.01 * i + 0.05 * s for s in SEVERITIES] for i in range(15)])
V2 = table([((0.15, 0.15, 0.15, 0.80, 0.90), (0.20, 0.30, 0.40, 0.50, 0.60))[i % 2] for i in range(15)])


def mean_error(errors: measures.Errors) -> float:
    """The plain mean that a summary gives, of 100 images that have these errors."""
    cells: Results = {
        f"c/{name}/{severity}": np.arange(100) >= round(100 * error)
        for name, row in errors.items()
        for severity, error in row.items()
    }
    return float(summary.summarize(cells)["c"]["value"])


@st.composite
def error_tables(draw: st.DrawFn) -> measures.Errors:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return table(rng.uniform(0.01, 1, (15, 5)).tolist())


# --- corruptions ---


def test_v1() -> None:
    ce = measures.corruption_errors(V1)
    assert 100 * measures.mce(V1) == pytest.approx(41.98785601539932, abs=1e-10)
    assert 100 * measures.relative_mce(V1, 0.20) == pytest.approx(43.1212268549094, abs=1e-10)
    assert 100 * mean_error(V1) == pytest.approx(32.0, abs=1e-10)
    assert 100 * ce["gaussian_noise"] == pytest.approx(28.20308, abs=5e-6)
    assert 100 * ce["brightness"] == pytest.approx(61.991668, abs=5e-7)
    assert 100 * ce["jpeg_compression"] == pytest.approx(64.30338, abs=5e-6)


def test_v2() -> None:
    assert 100 * measures.mce(V2) == pytest.approx(53.908550988195856, abs=1e-10)
    assert 100 * measures.relative_mce(V2, 0.25) == pytest.approx(54.9148812009249, abs=1e-10)


def test_v3_alexnet_against_itself_and_the_published_resnext_wsl() -> None:
    assert measures.mce(ALEXNET.errors) == pytest.approx(1, abs=1e-12)
    assert measures.relative_mce(ALEXNET.errors, ALEXNET.clean) == pytest.approx(1, abs=1e-12)
    wsl = table([[error / 100] * 5 for error in WSL])
    found = measures.mce(wsl)
    assert round(100 * found, 2) == 45.70
    (printed,) = (
        anchor.value
        for anchor in anchors.find("c", "released-224", "mce")
        if anchor.model == "resnext101_32x48d_wsl"
    )
    assert round(found, 4) == printed


def test_v13_the_mean_error_of_cifar_is_divided_by_no_model() -> None:
    errors = table([[1 - (95 - s * (i + 1)) / 100 for s in SEVERITIES] for i in range(15)])
    assert mean_error(errors) == pytest.approx(0.29, abs=1e-12)


def test_alexnet_as_published() -> None:
    means = {name: np.mean(list(values.values())) for name, values in ALEXNET.errors.items()}
    assert tuple(means) == CORRUPTIONS + measures.EXTRA_CORRUPTIONS
    assert np.mean([means[name] for name in CORRUPTIONS]) == pytest.approx(0.788993, abs=5e-7)
    assert means["glass_blur"] == pytest.approx(0.826268) and means["spatter"] == pytest.approx(0.717512)
    assert ALEXNET.clean == 0.43478
    assert sorted(ALEXNET.flips) == sorted(PERTURBATIONS + measures.EXTRA_PERTURBATIONS)


@settings(max_examples=40, deadline=None)
@given(error_tables(), error_tables(), st.floats(0.1, 1))
def test_a_ratio_of_sums_over_severities(own: measures.Errors, by: measures.Errors, share: float) -> None:
    expected = np.mean([sum(own[name].values()) / sum(by[name].values()) for name in CORRUPTIONS])
    assert measures.mce(own, by) == pytest.approx(expected)
    scaled = {name: {s: share * error for s, error in row.items()} for name, row in own.items()}
    assert measures.mce(scaled, by) == pytest.approx(share * measures.mce(own, by))
    assert measures.mce(own, own) == pytest.approx(1)
    assert measures.relative_mce(own, 0.0, by, 0.0) == pytest.approx(measures.mce(own, by))


@settings(max_examples=30, deadline=None)
@given(error_tables(), st.sets(st.integers(1, 5), min_size=1))
def test_some_severities_are_divided_by_the_same_ones(own: measures.Errors, some: set[int]) -> None:
    def part(errors: measures.Errors) -> measures.Errors:
        return {name: {s: errors[name][s] for s in some} for name in CORRUPTIONS}

    fast = part(own)
    assert measures.mce(fast) == pytest.approx(measures.mce(fast, part(ALEXNET.errors)))
    assert measures.mce(part(ALEXNET.errors)) == pytest.approx(1)


def test_without_frost_the_fourteen_are_averaged_and_extras_never_are() -> None:
    missing = {name: V1[name] for name in WITHOUT_FROST} | {"spatter": dict.fromkeys(SEVERITIES, 1.0)}
    ce = measures.corruption_errors(V1)
    expected = np.mean([ce[name] for name in WITHOUT_FROST])
    assert measures.mce(missing, names=WITHOUT_FROST) == pytest.approx(expected)
    with pytest.raises(InputError, match="no errors of frost"):
        measures.mce(missing)


def test_relative_mce_is_negative_for_a_model_that_gains() -> None:
    assert measures.relative_mce(V1, clean=1.0) < 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fog": {1: 0.1, 2: 0.1}}, "fog lacks severity 3"),
        ({"fog": dict.fromkeys(range(1, 7), 0.1)}, r"fog has severities \[1, 2, 3, 4, 5, 6\]"),
        ({"fog": dict.fromkeys(SEVERITIES, 29.9)}, "error of fog 1 is 29.9; it must be in 0 to 1"),
        ({"fog": dict.fromkeys(SEVERITIES, float("nan"))}, "error of fog 1 is nan"),
        ({"fog": {}}, "no errors of fog"),
        ({"gaussian_noise": {}}, "no errors of gaussian_noise"),
    ],
)
def test_tables_no_mean_is_defined_on(change: dict[str, dict[int, float]], message: str) -> None:
    broken = {**V1, **change}
    with pytest.raises(InputError, match=message):
        measures.mce(broken)


def test_a_model_that_never_errs_cannot_be_divided_by() -> None:
    perfect = {**V1, "fog": dict.fromkeys(SEVERITIES, 0.0)}
    assert measures.mce(perfect) > 0
    with pytest.raises(InputError, match="fog: the value to divide by is 0; it must be above 0"):
        measures.mce(V1, perfect)
    with pytest.raises(InputError, match=r"the value to divide by is -\d\S+; it must be above 0"):
        measures.relative_mce(V1, 0.2, V1, 0.999)


# --- flips ---

V4 = np.array([[3, 3, 3, 5, 5, 3, 3], [1, 2, 1, 2, 1, 2, 1], [7] * 7, [4, 4, 9, 9, 9, 9, 4]])


def test_v4() -> None:
    assert measures.flip_probability(V4, noise=False) == pytest.approx(5 / 12, abs=1e-15)
    assert measures.flip_probability(V4, noise=True) == pytest.approx(3 / 8, abs=1e-15)


def test_v5() -> None:
    flips = {name: 0.01 * rank for rank, name in enumerate(PERTURBATIONS, start=1)}
    assert 100 * measures.mfr(flips) == pytest.approx(56.991190580783226, abs=1e-10)
    assert measures.mfr(ALEXNET.flips) == pytest.approx(1)


def test_snow_counts_and_spatter_does_not() -> None:
    flips = dict(ALEXNET.flips)
    assert measures.mfr({**flips, "spatter": 1.0}) == measures.mfr(flips)
    assert measures.mfr({**flips, "snow": 1.0}) > measures.mfr(flips)
    with pytest.raises(InputError, match="no value of snow"):
        measures.mfr({name: flips[name] for name in flips if name != "snow"})


def test_noise_is_recognized_by_its_name() -> None:
    noises = [name for name in (*PERTURBATIONS, "speckle_noise") if measures.against_first(name)]
    assert noises == ["gaussian_noise", "shot_noise", "speckle_noise"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 9), st.integers(1, 4))
def test_flips_by_hand(seed: int, sequences: int, frames: int, classes: int) -> None:
    predictions = np.random.default_rng(seed).integers(0, classes, (sequences, frames))
    by_hand = {
        True: [np.mean([one[j] != one[0] for j in range(1, frames)]) for one in predictions],
        False: [np.mean([one[j] != one[j - 1] for j in range(1, frames)]) for one in predictions],
    }
    for noise, expected in by_hand.items():
        assert measures.flip_probability(predictions, noise) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("shape", [(3, 1), (0, 4), (4,)])
def test_frames_that_cannot_be_compared(shape: tuple[int, ...], noise: bool) -> None:
    with pytest.raises(InputError, match=rf"frames have shape {re.escape(str(shape))}; .* at least 2"):
        measures.flip_probability(np.zeros(shape, dtype=np.int64), noise)
