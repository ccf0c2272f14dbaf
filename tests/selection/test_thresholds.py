"""Thresholds that follow the teacher, and thresholds counted from chance."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import selection_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from test_selection import configs, large_pool, pairs, quick, run

from noisystudent.config import SelectionConfig
from noisystudent.errors import InputError
from noisystudent.selection import select, summary, without_effect
from noisystudent.selection.thresholds import fixed

# Confidences for 4 classes: on a coarse grid, where thresholds are reached exactly, and on a fine one.
plausible = st.one_of(
    st.integers(0, 4).map(lambda k: 0.25 + k * 3 / 16),
    st.integers(0, 3 << 18).map(lambda k: 0.25 + k / (1 << 20)),
)
pools = st.lists(st.tuples(st.integers(0, 3), plausible), max_size=40)


@settings(max_examples=40, deadline=None)
@given(pairs=pools, config=configs)
def test_adaptive_equals_the_reference(pairs: list[tuple[int, float]], config: SelectionConfig) -> None:
    rows, config = reference.pool(pairs), replace(config, mode="adaptive")
    with tempfile.TemporaryDirectory() as folder:
        assert reference.decisions(run(rows, config, Path(folder))) == reference.adaptive(rows, config)


@quick
@given(pairs=pairs, config=configs)
def test_a_relative_threshold_equals_the_reference(
    pairs: list[tuple[int, float]], config: SelectionConfig
) -> None:
    rows, config = reference.pool(pairs), replace(config, relative=True)
    with tempfile.TemporaryDirectory() as folder:
        assert reference.decisions(run(rows, config, Path(folder))) == reference.paper(rows, config)


@quick
@given(pairs=pools, config=configs)
def test_conservation(pairs: list[tuple[int, float]], config: SelectionConfig) -> None:
    """Every image has one decision, and every class of kept images has the same total."""
    rows, config = reference.pool(pairs), replace(config, mode="adaptive", duplicate=True, strength=1.0)
    with tempfile.TemporaryDirectory() as folder:
        selection = run(rows, config, Path(folder))
        decided, counts = reference.decisions(selection), summary(selection)
    assert decided.total() == counts["images"] == len(rows)
    assert all((decision.repeats > 0) == (decision.reason == "kept") for decision in decided)
    predicted = {row.label for row in rows}
    # Up to strength 1 the threshold of a class is at most its mean, so its surest image is kept.
    assert {row["label"] for row in counts["classes"] if row["kept"]} == predicted
    assert len({row["total"] for row in counts["classes"] if row["kept"]}) <= 1


def test_every_image_above_the_thresholds_of_freematch_once(tmp_path: Path) -> None:
    """Without balancing, for many classes, it is FreeMatch's mask with class means."""
    rows = large_pool(3_000, classes=4, seed=5)
    config = SelectionConfig(mode="adaptive", per_class=3_000, duplicate=False)
    kept = {row["row"] for row in reference.read(run(rows, config, tmp_path)) if row["repeats"]}
    relative, label = (
        (np.array([r.confidence for r in rows]) - 0.25) / 0.75,
        np.array([r.label for r in rows]),
    )
    means = np.array([max(relative[label == c].mean(), 0) for c in range(4)])
    mask = relative >= relative.mean() * means[label] / means.max()
    assert kept == set(np.flatnonzero(mask).tolist())


def test_equal_confidences_keep_all_images(tmp_path: Path) -> None:
    """A teacher that is sure of every image loses none: the threshold is reached, not passed."""
    for confidence in (1.0, 0.7):
        rows = reference.pool([(0, confidence)] * 5 + [(3, confidence)] * 5)
        assert summary(run(rows, SelectionConfig(mode="adaptive"), tmp_path / str(confidence)))["kept"] == 10


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_a_larger_strength_keeps_fewer_images(tmp_path: Path, strength: float) -> None:
    rows = large_pool(2_000)
    config = SelectionConfig(mode="adaptive", per_class=2_000, duplicate=False)
    found = summary(run(rows, replace(config, strength=strength), tmp_path / "a"))["above_threshold"]
    assert (
        found
        > summary(run(rows, replace(config, strength=strength + 0.3), tmp_path / "b"))["above_threshold"]
    )


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 1_000])
@pytest.mark.parametrize("threshold", [0.0, 0.07, 0.3, 0.999])
def test_a_relative_threshold_is_the_fraction_rounded_down(classes: int, threshold: float) -> None:
    exact = Fraction(1, classes) + Fraction(str(threshold)) * Fraction(classes - 1, classes)
    found = fixed(SelectionConfig(threshold=threshold, relative=True), classes)
    assert Fraction(found) <= exact < Fraction(float(np.nextafter(found, 2)))
    assert fixed(SelectionConfig(threshold=threshold), classes) == threshold


def test_two_classes(tmp_path: Path) -> None:
    """0.3 is above no probability of 2 classes; counted from chance it is 0.65."""
    confidences = [0.5, 0.6, 0.65, 0.7, 0.9]
    rows = reference.pool([(label, c) for label in (0, 1) for c in confidences])
    labels = reference.write(tmp_path / "labels", {"part-00000.parquet": rows}, num_classes=2)
    kept = Counter[str]()
    for name, relative in (("absolute", False), ("relative", True)):
        config = SelectionConfig(relative=relative)
        kept[name] = summary(select(labels, config, seed=0, out=tmp_path / f"{name}.parquet"))["kept"]
        assert (without_effect(config, 2) is None) == relative
    assert kept == {"absolute": 10, "relative": 4}


def test_a_threshold_that_no_confidence_is_below_is_named() -> None:
    line = without_effect(SelectionConfig(), 3)
    assert line is not None and "the largest of 3 probabilities is at least 0.333" in line
    for config in (
        SelectionConfig(threshold=0.0),
        SelectionConfig(mode="all"),
        SelectionConfig(mode="adaptive"),
    ):
        assert without_effect(config, 3) is None
    assert without_effect(SelectionConfig(), 4) is None
    with pytest.raises(InputError, match=r"selection\.relative is true, but the threshold of mode official"):
        SelectionConfig(mode="official", relative=True)
