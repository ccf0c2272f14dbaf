"""Repeated images are never stored one by one, and no epoch is far larger than its training."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisystudent.data.sampler import _BLOCK, Repeated, Sampler, shown
from noisystudent.distributed import Group

counts = st.lists(st.integers(0, 9), min_size=1, max_size=30).map(lambda n: np.array(n, np.int32))
DRAWS = 2**25  # the number of images from which `shown` may change the repeats


@given(repeats=counts)
def test_repeated_positions_are_those_of_numpy(repeats: np.ndarray) -> None:
    expected = np.repeat(np.arange(len(repeats)), repeats)
    assert len(Repeated(repeats)) == len(expected)
    assert np.array_equal(Repeated(repeats)[np.arange(len(expected))], expected)


@given(repeats=counts, draws=st.integers(0, 10**12))
def test_an_epoch_of_ordinary_size_is_unchanged(repeats: np.ndarray, draws: int) -> None:
    assert np.array_equal(shown(repeats, draws), repeats)


@given(share=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30), draws=st.integers(0, 10**12))
def test_a_huge_epoch_is_as_large_as_its_training_in_proportion(share: list[int], draws: int) -> None:
    repeats = np.array(share, np.int32)
    fewer = shown(repeats, draws)
    assert np.array_equal(fewer > 0, repeats > 0)
    total = int(repeats.sum(dtype=np.int64))
    limit = min(max(draws, DRAWS), 2**29)
    assert int(fewer.sum(dtype=np.int64)) <= min(total, limit + len(share))
    if total > limit:
        ratio = -(-total // limit)
        assert (np.abs(repeats / ratio - fewer) <= 1).all()


def test_a_billion_images_for_each_class_take_little_memory() -> None:
    repeats = np.full(30, 100_000_000, np.int32)
    sequence = Repeated(repeats)
    assert len(sequence) == 3_000_000_000
    assert sequence[np.array([0, 99_999_999, 100_000_000, 2_999_999_999])].tolist() == [0, 0, 1, 29]


SIZES = {"n": st.integers(1, 3_000), "batch": st.integers(1, 700), "window": st.integers(1, 1_500)}


@settings(max_examples=40, deadline=None)
@given(**SIZES, offset=st.integers(0, 5_000))
def test_with_windows_each_epoch_is_a_permutation(n: int, batch: int, window: int, offset: int) -> None:
    sampler = Sampler(n, batch, 7, "pool", offset, window=window)
    start = -(-offset // n) * n - offset  # of the first whole epoch
    steps = range(-(-(start + 2 * n) // batch))
    drawn = np.concatenate([sampler.at(step) for step in steps])[start:]
    first, second = drawn[:n], drawn[n : 2 * n]
    assert np.array_equal(np.sort(first), np.arange(n)) and np.array_equal(np.sort(second), np.arange(n))
    alone = Sampler(n, batch, 7, "pool", offset, window=window)
    assert np.array_equal(alone.at(steps[-1]), sampler.at(steps[-1])), "any step may be the first"
    if window >= n:
        whole = Sampler(n, batch, 7, "pool", offset)
        assert np.array_equal(whole.at(0), sampler.at(0))


@settings(max_examples=40, deadline=None)
@given(**SIZES)
def test_a_window_has_neighbours_and_is_fetched_in_the_window_before(n: int, batch: int, window: int) -> None:
    sampler = Sampler(n, batch, 7, "pool", window=window)
    steps = range(-(-2 * n // batch))
    drawn = np.concatenate([sampler.at(step) for step in steps])
    ahead = np.concatenate([sampler.ahead(step, slice(0, batch)) for step in steps])
    if window >= n:
        assert len(ahead) == 0
        return
    assert len(np.unique(drawn[:window] // _BLOCK)) <= -(-window // _BLOCK) + 2
    assert np.array_equal(np.sort(ahead[: n - window]), np.sort(drawn[window:n])), "of the first epoch"


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 1_500), batch=st.integers(20, 700), window=st.integers(1, 1_000),
    machines=st.sampled_from([1, 2, 4]), processes=st.integers(1, 3),
)  # fmt: skip
def test_a_machine_fetches_what_it_draws_and_before_it_draws_it(
    n: int, batch: int, window: int, machines: int, processes: int
) -> None:
    """In the first epoch, all but the first window of it, and each image once."""
    window = min(window, n - 1)
    last = (n - 1) // window * window  # place of the last window
    for machine in range(machines):
        sampler, group = Sampler(n, batch, 7, "pool", window=window), Group()
        group.size = machines * processes
        rows = group.rows(batch, range(machine * processes, (machine + 1) * processes))
        own: set[int] = set()
        fetched: list[int] = []
        count = 0  # fetched of this epoch alone
        for step in range(-(-n // batch)):
            fetched += sampler.ahead(step, rows).tolist()
            places, drawn = np.arange(step * batch, (step + 1) * batch)[rows], sampler.at(step)[rows]
            own |= set(drawn[places < n])
            assert set(drawn[(places >= window) & (places < n)]) <= set(fetched)
            if (step + 1) * batch <= last:
                count = len(fetched)
        assert len(set(fetched[:count])) == count and set(fetched[:count]) <= own


@pytest.mark.parametrize("machines", [2, 4, 8])
def test_machines_that_share_a_cache_fetch_little_twice(machines: int) -> None:
    """All look into the cache at once, then fetch; 4 neighbours are one block."""
    sampler, everyone = Sampler(20_000, 256, 7, "pool", window=4_096), [Group() for _ in range(machines)]
    cache: set[int] = set()
    requested = 0
    for step in range(16):  # of one window
        missing = []
        for rank, group in enumerate(everyone):
            group.rank, group.size = rank, machines
            missing.append(set(sampler.ahead(step, group.rows(256)) // 4) - cache)
        requested += sum(map(len, missing))
        cache = cache.union(*missing)
    assert 4 * len(cache) >= 4_096 and requested <= 1.05 * len(cache)
