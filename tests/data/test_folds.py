"""The folds divide the labelled images evenly, and depend on the content of the images only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_splits import contents

from noisystudent.data.folds import divide
from noisystudent.errors import InputError

# (content, class) of each image: some contents occur more than once, and some with two classes.
sets = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=60)


@settings(max_examples=100, deadline=None)
@given(pairs=sets, folds=st.integers(2, 6), seed=st.integers(0, 20))
def test_every_image_is_in_one_fold_and_copies_are_in_the_same(
    pairs: list[tuple[int, int]], folds: int, seed: int
) -> None:
    keys, labels = np.array([key for key, _ in pairs]), np.array([label for _, label in pairs])
    if len(set(keys)) < folds:
        with pytest.raises(InputError, match=f"--folds is {folds}, but there are {len(set(keys))} different"):
            divide(contents(keys.tolist()), labels, folds, seed)
        return
    fold = divide(contents(keys.tolist()), labels, folds, seed)
    assert fold.shape == keys.shape and set(fold) == set(range(folds)), "no fold is empty"
    assert all(len(set(fold[keys == key])) == 1 for key in keys)
    sizes = [len(set(keys[fold == number])) for number in range(folds)]
    assert max(sizes) - min(sizes) <= 1
    order = np.random.default_rng(seed).permutation(len(keys))
    again = divide(contents(keys[order].tolist()), labels[order], folds, seed)
    assert (again == fold[order]).all(), "the order of the files has no effect"


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(1, 15), min_size=2, max_size=6),
    folds=st.integers(2, 5),
    seed=st.integers(0, 20),
)
def test_each_class_is_dealt_out_evenly(counts: list[int], folds: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    hashes = contents(list(range(len(labels))))
    if len(labels) < folds:
        return
    fold = divide(hashes, labels, folds, seed)
    for label in range(len(counts)):
        shares = np.bincount(fold[labels == label], minlength=folds)
        assert shares.max() - shares.min() <= 1


def test_another_seed_gives_other_folds() -> None:
    hashes, labels = contents(list(range(60))), np.arange(60) % 3
    assert (divide(hashes, labels, 5, 0) != divide(hashes, labels, 5, 1)).any()
