"""Laws of what is chosen: how many, each once, the uncertain and different ones."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from noisystudent.review.choices import disagreements, doubtful_and_frequent, next_to_label
from noisystudent.review.labeled import out_of_fold


def drawn(seed: int, images: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(images, 4)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return rng.dirichlet(np.ones(classes), images).astype(np.float32), features


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 50), images=st.integers(2, 60), count=st.integers(1, 8))
def test_so_many_different_images_are_next_in_order_of_uncertainty(
    seed: int, images: int, count: int
) -> None:
    probs, features = drawn(seed, images)
    chosen, score = next_to_label(probs, features, count, seed=0)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, images)
    assert (np.diff(score) <= 0).all()
    second, first = np.sort(probs.astype(np.float64), axis=1)[chosen, -2:].T
    assert np.allclose(score, 1 - (first - second))


def test_without_more_candidates_than_images_the_most_uncertain_are_next() -> None:
    probs, features = drawn(0, 7)
    chosen, _ = next_to_label(probs, features, 7, seed=0)
    second, first = np.sort(probs, axis=1)[:, -2:].T
    assert chosen.tolist() == np.argsort(first - second, kind="stable").tolist()


def test_the_next_images_are_of_all_regions() -> None:
    """Of four groups of equal images one each, although a group has images enough for all."""
    features = np.repeat(np.eye(4, dtype=np.float32), 10, axis=0)
    probs = np.full((40, 2), 0.5, np.float32)
    chosen, _ = next_to_label(probs, features, 4, seed=0)
    assert sorted((chosen // 10).tolist()) == [0, 1, 2, 3]


@given(seed=st.integers(0, 100))
def test_disagreement_names_those_that_differ_and_sure_ones_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, 3, (2, 30))
    sure, other_sure = rng.uniform(0.4, 1, (2, 30))
    agreed = np.ones(30)
    rows, score = disagreements(one, sure, other, other_sure, agreed)
    assert sorted(rows.tolist()) == np.flatnonzero(one != other).tolist()
    assert (score == np.minimum(sure, other_sure)[rows]).all() and (np.diff(score) <= 0).all()
    divided, _ = disagreements(one, sure, one, other_sure, np.where(np.arange(30) == 7, 0.6, 1.0))
    assert divided.tolist() == [7]


def test_doubt_counts_more_where_images_are_many() -> None:
    """Ten images alike and one alone, all as doubtful; and one that is like the ten, and sure."""
    crowd, alone = np.tile([[1.0, 0.0]], (11, 1)), np.array([[0.0, 1.0]])
    features = np.concatenate([crowd, alone]).astype(np.float32)
    probs = np.full((12, 2), 0.5, np.float32)
    probs[10] = [1, 0]
    rows, score = doubtful_and_frequent(probs, features)
    assert set(rows[:10].tolist()) == set(range(10)) and np.allclose(score[:10], 0.5)
    assert np.allclose(score[10:], 0)


def test_a_label_does_not_change_its_own_prediction() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 20)
    features = (rng.normal(size=(40, 3)) + 2 * labels[:, None]).astype(np.float32)
    fold_of = np.arange(40) % 5
    probs = out_of_fold(features, labels, fold_of, 3)
    assert np.allclose(probs.sum(axis=1), 1) and (probs[:, 2] == 0).all()
    assert (probs.argmax(axis=1) == labels).mean() > 0.9
    changed = np.where(fold_of == 2, 1 - labels, labels)
    # The weight decay may be another one, but never what the fold is trained on.
    assert (
        out_of_fold(features, changed, fold_of, 3)[fold_of == 2].argmax(axis=1) == labels[fold_of == 2]
    ).mean() > 0.8
