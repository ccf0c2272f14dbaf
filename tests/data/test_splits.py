"""The split of val depends on the content of the images only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from noisystudent.data.splits import class_names, conflicting, counterparts, split_val
from noisystudent.errors import InputError


def contents(numbers: list[int]) -> np.ndarray:
    """(n, 16) a hash for each number, with zeros at both ends, which string types would ignore."""
    hashes = np.zeros((len(numbers), 16), np.uint8)
    hashes[:, 7:11] = np.array(numbers, np.int32).view(np.uint8).reshape(-1, 4)
    return hashes


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=6),
    fraction=st.floats(0.05, 0.9),
    seed=st.integers(0, 100),
)
@example([2, 4, 8, 12, 12, 12], 0.05, 0)  # the shares of the classes add up to a little over 2.5
def test_split_is_stratified_and_blind_to_order(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    hashes = contents(list(range(len(labels))))
    if max(counts) == 1:
        with pytest.raises(InputError, match="--val"):
            split_val(hashes, labels, fraction, seed)
        return
    val = split_val(hashes, labels, fraction, seed)
    taken = np.bincount(labels[val], minlength=len(counts))
    assert (taken < counts).all(), "every class keeps an image"
    spare = sum(count - 1 for count in counts)
    assert taken.sum() == min(spare, max(1, round(fraction * len(labels))))
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    assert np.array_equal(split_val(hashes[shuffled], labels[shuffled], fraction, seed), val[shuffled])


def test_classes_give_their_share() -> None:
    labels = np.repeat([0, 1], [100, 20])
    val = split_val(contents(list(range(120))), labels, 0.1, 0)
    assert np.bincount(labels[val]).tolist() == [10, 2]


def test_seeds_choose_differently() -> None:
    labels, hashes = np.repeat([0, 1], 50), contents(list(range(100)))
    assert not np.array_equal(split_val(hashes, labels, 0.2, 0), split_val(hashes, labels, 0.2, 1))


def test_copies_go_together_and_contradictions_stay_in_training() -> None:
    hashes = contents([1, 1, 2, 2, 3, 4, 5, 5])
    labels = np.array([0, 0, 0, 0, 1, 1, 0, 1])  # content 5 has both labels
    assert conflicting(hashes, labels).tolist() == [False] * 6 + [True] * 2
    for seed in range(10):
        val = split_val(hashes, labels, 0.4, seed)
        assert val[0] == val[1] and val[2] == val[3] and not val[6:].any()


@given(drawn=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=12))
def test_a_counterpart_is_the_first_copy_with_another_label(drawn: list[tuple[int, int]]) -> None:
    content, label = (list(part) for part in zip(*drawn, strict=True))
    expected = [
        next((row for row, other in enumerate(drawn) if other[0] == one[0] and other[1] != one[1]), -1)
        for one in drawn
    ]
    assert counterparts(contents(content), np.array(label)).tolist() == expected


def test_numbered_classes_sort_by_number() -> None:
    assert class_names(["10", "9", "0"]) == ("0", "9", "10")
    assert class_names(["b", "10", "9"]) == ("10", "9", "b")
