"""Masks are a hash of seed, part, row, step and column: to the bit, and as good as random."""

from __future__ import annotations

import numpy as np
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noised_networks import feature_masks, path_masks, paths, tiny
from numpy.typing import NDArray
from scipy import stats

from noisystudent.models.noise import ModelNoise
from noisystudent.runtime import torch_seed

torch.set_num_threads(1)


def splitmix64(seed: NDArray[np.uint64], number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The number-th output (from 1) of SplitMix64, after Steele, Lea and Flood (OOPSLA 2014), figure 13."""
    z = seed + number * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def test_splitmix64_has_its_published_numbers() -> None:
    # The first outputs for seed 1234567, in the reference code at prng.di.unimi.it.
    numbers = splitmix64(np.array([1234567], dtype=np.uint64), np.arange(1, 6, dtype=np.uint64))
    assert numbers.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), step=st.integers(0, 2**40), labeled=st.integers(0, 5))
def test_masks_are_a_hash_of_seed_row_step_and_column(seed: int, step: int, labeled: int) -> None:
    net = tiny("resnet8_16")
    noise = ModelNoise(net, 0.3, 0.5)
    rows, features = labeled + 3, net.get_classifier().in_features
    noise.draw(seed, step, torch.ones(rows, dtype=torch.bool), split=labeled)

    def dropped(part: str, row: int, column: int, rate: float) -> bool:
        start = np.array([torch_seed(seed, f"model_noise/{part}")], dtype=np.uint64)
        of_row = splitmix64(start, np.array([row], dtype=np.uint64))
        of_step = splitmix64(of_row, np.array([step], dtype=np.uint64))
        words = splitmix64(of_step, np.array([column // 2 + 1], dtype=np.uint64)).astype("<u8").view("<i4")
        return bool((int(words[column % 2]) + 2**31) / 2**32 < rate)

    parts = [("labeled", row) for row in range(labeled)] + [("pool", row) for row in range(3)]
    expected = [[dropped(*part, column, 0.3) for column in range(features)] for part in parts]
    assert np.array_equal(feature_masks(net, rows).numpy() == 0, expected)
    branches = [(2**41 + number, path.rate) for number, path in enumerate(paths(net))]
    expected = [[dropped(*part, *branch) for part in parts] for branch in branches]
    assert np.array_equal(path_masks(net).numpy() == 0, expected)


def test_masks_are_independent_of_their_neighbours() -> None:
    net = timm.create_model("resnet8_16")
    noise, rows, steps = ModelNoise(net, 0.5, 0.0), 256, 64
    drawn = []
    for step in range(steps):
        noise.draw(0, step, torch.ones(rows, dtype=torch.bool), split=rows // 2)
        drawn.append(feature_masks(net, rows) > 0)
    kept = torch.stack(drawn).numpy()  # (steps, B, F), each True with probability 1/2
    for axis in range(3):
        for lag in (1, 2, 3, 8, 32):
            one, other = (np.moveaxis(kept, axis, 0)[part] for part in (slice(lag, None), slice(-lag)))
            equal = (one == other).mean()
            assert abs(equal - 0.5) < 4 * 0.5 / one.size**0.5, f"axis {axis}, lag {lag}"
        # How many of the others are kept is binomial.
        counts = np.moveaxis(kept, axis, 0).reshape(kept.shape[axis], -1).sum(1)
        assert stats.kstest(counts, stats.binom(kept.size // len(counts), 0.5).cdf).pvalue > 1e-3
    # Every pattern of eight features is as frequent as any other.
    patterns = np.bincount(np.packbits(kept.reshape(-1, 8), axis=1).ravel(), minlength=256)
    assert stats.chisquare(patterns).pvalue > 1e-3


def test_rows_of_a_batch_have_the_noise_that_they_have_in_the_whole_batch() -> None:
    """Parts of a batch are computed one after the other, or by several processes."""
    net = tiny("resnet10t")
    noise = ModelNoise(net, 0.5, 0.5)
    images, active = torch.rand(9, 3, 32, 32), torch.ones(9, dtype=torch.bool)
    noise.draw(3, 4, active, split=4)
    with torch.no_grad():
        whole = net(images)
        clean = torch.tensor([0, 2, 5, 8])
        noise.restrict(clean)
        assert torch.allclose(net(images[clean]), whole[clean], atol=1e-6)
        # Labelled rows 1 … 3 and pool rows 2 … 4, as of the second of two processes.
        noise.on(3, active[:6], split=3, first=(1, 2))
        noise.fill(torch.tensor(4))
        rows = torch.tensor([1, 2, 3, 6, 7, 8])
        assert torch.allclose(net(images[rows]), whole[rows], atol=1e-6)
