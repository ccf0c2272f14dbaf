from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from noisystudent.train.losses import Normalization, joint_loss, soft_cross_entropy

NORMALIZATIONS: tuple[Normalization, ...] = ("joint", "equal", "official")


def example(seed: int, labeled: int, pool: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(labeled + pool, classes, generator=draws) * 4
    labels = torch.randint(0, classes, (labeled,), generator=draws)
    return logits, labels, torch.randn(pool, classes, generator=draws).softmax(1)


sizes = st.tuples(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 12), st.integers(2, 9))


@given(sizes, st.floats(0, 0.9), st.booleans())
def test_three_normalizations_weigh_the_two_means_as_the_paper_says(
    size: tuple[int, int, int, int], smoothing: float, hard: bool
) -> None:
    logits, labels, targets = example(*size)
    labeled, pool = len(labels), len(targets)
    labeled_mean = F.cross_entropy(logits[:labeled], labels, label_smoothing=smoothing)
    if hard:
        pool_mean = F.cross_entropy(logits[labeled:], targets.argmax(1), label_smoothing=smoothing)
    else:
        pool_mean = F.cross_entropy(logits[labeled:], targets)  # soft targets are never smoothed
    ratio = pool / labeled
    expected = {
        "joint": (labeled_mean + ratio * pool_mean) / (1 + ratio),
        "equal": labeled_mean + pool_mean,
        "official": labeled_mean + ratio * pool_mean,
    }
    for normalization in NORMALIZATIONS:
        loss = joint_loss(
            logits, labels, targets, smoothing=smoothing, hard_pool=hard, normalization=normalization
        )
        torch.testing.assert_close(loss, expected[normalization], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("hard", [False, True])
def test_without_pool_rows_every_normalization_is_the_labeled_mean(
    normalization: Normalization, hard: bool
) -> None:
    logits, labels, _ = example(3, 7, 0, 5)
    nothing = torch.empty(0, 5)
    loss = joint_loss(logits, labels, nothing, smoothing=0.1, hard_pool=hard, normalization=normalization)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_soft_cross_entropy_is_entropy_at_its_minimum() -> None:
    targets = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    losses = soft_cross_entropy(targets.clamp_min(1e-30).log(), targets)
    torch.testing.assert_close(losses, torch.tensor([1.5 * math.log(2), 0.0]))


def test_loss_is_computed_in_float32_whatever_the_logits_are() -> None:
    logits, labels, targets = example(1, 4, 4, 6)
    rounded = logits.bfloat16()
    loss = joint_loss(rounded, labels, targets, smoothing=0.1, hard_pool=False, normalization="joint")
    wide = joint_loss(rounded.float(), labels, targets, smoothing=0.1, hard_pool=False, normalization="joint")
    assert loss.dtype == torch.float32
    assert torch.equal(loss, wide)
