"""Cross-entropy on given labels and pseudo-labels, with three ways to average the two."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Normalization = Literal["joint", "equal", "official"]
"""Ways to average the losses of a batch; see `joint_loss`."""


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute -Σ_k targets_k log softmax(logits)_k for each row, in float32: (B, K), (B, K) -> (B,)."""
    return -(targets.float() * F.log_softmax(logits.float(), dim=1)).sum(dim=1)


def _one_hot(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Smoothed one-hot targets: (N,) int64 -> (N, K) float32; `smoothing` is spread evenly over K classes."""
    return F.one_hot(labels, num_classes).float() * (1.0 - smoothing) + smoothing / num_classes


def joint_loss(
    logits: Tensor,
    labels: Tensor,
    pool_targets: Tensor,
    *,
    smoothing: float,
    hard_pool: bool,
    normalization: Normalization,
    pool_temperature: float = 1.0,
) -> Tensor:
    """Compute the loss of a joint batch (Xie et al. 2020, arXiv 1911.04252, Alg. 1 and §3.1).

    Labelled rows come first. Without pool rows, or without labelled rows, all three normalisations give the
    mean.

    Args:
        logits: (B, K) of any floating-point type; the loss is computed in float32.
        labels: (L,) int64, 0 ≤ L ≤ B; always smoothed.
        pool_targets: (B-L, K) probabilities of the rows after the labelled ones; never smoothed when soft.
        smoothing: label smoothing in [0, 1), spread evenly over all classes.
        hard_pool: True: the target of each pool row is its most likely class, smoothed. False: the target is
            its probabilities.
        normalization: joint: mean over the batch (§3.1). equal: mean over labelled rows + mean over pool rows
            (Alg. 1). official: (sum over the batch) / L, as in the published code (main.py:547-550).
        pool_temperature: T of distillation (Hinton et al. 2015, arXiv 1503.02531). The logits of pool rows
            are divided by T, and their losses are multiplied by T², so that gradients keep their size.

    Returns:
        () float32.
    """
    num_labeled, num_classes = len(labels), logits.shape[1]
    if hard_pool:
        pool_targets = _one_hot(pool_targets.argmax(dim=1), num_classes, smoothing)
    targets = torch.cat([_one_hot(labels, num_classes, smoothing), pool_targets.float()])
    losses = soft_cross_entropy(logits, targets)  # (B,)
    # Temperature applies to pool rows only: given labels are not probabilities of a teacher.
    if pool_temperature != 1.0:
        cooled = soft_cross_entropy(logits[num_labeled:].float() / pool_temperature, pool_targets)
        losses = torch.cat([losses[:num_labeled], cooled * pool_temperature**2])
    if normalization == "joint" or num_labeled in (0, len(losses)):
        return losses.mean()
    if normalization == "equal":
        return losses[:num_labeled].mean() + losses[num_labeled:].mean()
    return losses.sum() / num_labeled  # a longer pool part gives a larger loss
