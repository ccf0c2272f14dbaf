"""The choice of a threshold or of a strength on labelled images, against a straight-line version."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import selection_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_selection import run

from noisystudent.config import SelectionConfig
from noisystudent.metrics.precision import wilson
from noisystudent.selection import choose, selected_rows
from noisystudent.selection.choice import STRENGTHS, THRESHOLDS, kept

Mode = Literal["paper", "official", "adaptive", "threshold"]
modes = st.sampled_from(["paper", "official", "adaptive", "threshold"])
Predicted = tuple[NDArray[np.float32], NDArray[np.int64]]


def predicted(images: int, accuracy: float, seed: int) -> Predicted:
    """Probabilities for 4 classes, more often right where they are sure, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, images)
    confidence = rng.uniform(0.3, 1, images)
    right = rng.random(images) < accuracy * confidence
    label = np.where(right, labels, (labels + 1) % 4)
    probs = np.repeat((1 - confidence)[:, None] / 3, 4, axis=1)
    np.put_along_axis(probs, label[:, None], confidence[:, None], axis=1)
    return probs.astype(np.float32), labels


@settings(max_examples=40, deadline=None)
@given(mode=modes, seed=st.integers(0, 99), value=st.integers(0, 19), limit=st.sampled_from([1.0, 0.9]))
def test_it_counts_the_images_that_the_selection_would_keep(
    mode: Mode, seed: int, value: int, limit: float
) -> None:
    """The labelled images as a pool: the selection in SQL keeps as many of them."""
    config = SelectionConfig(
        mode=mode,
        threshold=value / 20,
        strength=(1 + value) / 10,
        max_confidence=max(limit, value / 20 + 0.01),
        per_class=None if mode == "threshold" else 10**6,
        duplicate=False,
    )
    probs, labels = predicted(60, 0.9, seed)
    pairs = [(int(row.argmax()), float(row.max())) for row in probs]
    with tempfile.TemporaryDirectory() as folder:
        rows, _ = selected_rows(run(reference.pool(pairs), config, Path(folder)))
    found = kept(config, probs, labels)
    assert found.images == 60 and found.kept == len(rows)
    assert found.right == (probs.argmax(axis=1) == labels)[rows].sum()


@settings(max_examples=40, deadline=None)
@given(mode=modes, seed=st.integers(0, 99), accuracy=st.sampled_from([0.3, 0.8, 1.0, 1.2]))
def test_it_keeps_the_most_with_a_lower_end_of_80_percent(mode: Mode, seed: int, accuracy: float) -> None:
    config = SelectionConfig(mode=mode)
    probs, labels = predicted(120, accuracy, seed)
    chosen, sentence = choose(config, probs, labels)
    name, values = ("strength", STRENGTHS) if mode == "adaptive" else ("threshold", THRESHOLDS)
    value = getattr(chosen, name)

    def with_value(number: float) -> SelectionConfig:
        return replace(config, strength=number) if mode == "adaptive" else replace(config, threshold=number)

    assert chosen == with_value(value), "nothing else is changed"
    assert f"selection.{name} is {value:g}, chosen out of fold" in sentence
    every = {v: kept(with_value(v), probs, labels) for v in values}
    sure = {v: p.kept for v, p in every.items() if p.kept and wilson(p.right, p.kept, 0.95)[0] >= 0.8}
    if sure:
        assert sure[value] == max(sure.values()) and "it keeps the most" in sentence
    else:
        shares = {v: p.right / p.kept for v, p in every.items() if p.kept >= 12}
        assert shares[value] == max(shares.values()) and "no value has a lower end of 80%" in sentence


def test_a_teacher_that_is_always_right_keeps_every_image() -> None:
    chosen, _ = choose(SelectionConfig(threshold=0.9), *predicted(80, 10, 0))
    assert chosen.threshold == 0


@pytest.mark.parametrize(
    ("config", "images", "why"),
    [
        (SelectionConfig(threshold=0.7), 49, "selection.threshold stays 0.7: 49 labelled images are too few"),
        (SelectionConfig(mode="all"), 100, "selection.mode is all"),
        (
            SelectionConfig(threshold=0.0, max_confidence=0.05),
            100,
            "selection.threshold stays 0: no value keeps a tenth",
        ),
    ],
)
def test_where_nothing_can_be_chosen_the_given_value_stays(
    config: SelectionConfig, images: int, why: str
) -> None:
    chosen, sentence = choose(config, *predicted(images, 1, 0))
    assert chosen == config and sentence.startswith(why)
