"""Cross-entropy on given labels and pseudo-labels, with three ways to average the two."""

from __future__ import annotations

from collections.abc import Callable
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


def _blended(targets: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Targets (B, K) of blended rows, see `Batch.blend`."""
    return torch.lerp(targets[partner], targets, share[:, None])


def joint_loss(
    logits: Tensor,
    labels: Tensor,
    pool_targets: Tensor,
    *,
    smoothing: float,
    hard_pool: bool,
    normalization: Normalization,
    pool_temperature: float = 1.0,
    blend: tuple[Tensor, Tensor] | None = None,
    counts: tuple[int, int] | None = None,
) -> Tensor:
    """Compute the loss of a joint batch (Xie et al. 2020, arXiv 1911.04252, Alg. 1 and §3.1).

    Labelled rows are first. Without pool rows, or without labelled rows, all normalisations give the mean.
    The losses of the parts of a batch sum to that of the batch.

    Args:
        logits: (B, K) of any floating-point type; the loss is computed in float32.
        labels: (L,) int64, 0 ≤ L ≤ B; always smoothed.
        pool_targets: (B-L, K) probabilities of the rows after the labelled ones; never smoothed when soft. A
            row of zeros adds no loss, and the means are over all rows (FixMatch, arXiv 2001.07685, eq. 4).
        smoothing: label smoothing in [0, 1), spread evenly over all classes.
        hard_pool: True: the target of each pool row is its most likely class, smoothed. False: the target is
            its probabilities.
        normalization: joint: mean over the batch (§3.1). equal: mean over labelled rows + mean over pool rows
            (Alg. 1). official: (sum over the batch) / L, as in the published code (main.py:547-550).
        pool_temperature: T of distillation (Hinton et al. 2015, arXiv 1503.02531). Logits of pool rows only
            are divided by T, and their losses are multiplied by T², so that gradients keep their size.
        blend: see `Batch.blend`; the partner of a row is in the same part of the batch.
        counts: labelled rows and pool rows of the batch of which these rows are a part. None: of these rows.

    Returns:
        () float32.
    """
    num_labeled, num_classes = len(labels), logits.shape[1]
    if hard_pool:
        # argmax of a row of zeros is a class, too
        kept = pool_targets.any(dim=1, keepdim=True)
        pool_targets = _one_hot(pool_targets.argmax(dim=1), num_classes, smoothing) * kept
    targets = torch.cat([_one_hot(labels, num_classes, smoothing), pool_targets.float()])
    if blend is not None:
        targets = _blended(targets, *blend)
        pool_targets = targets[num_labeled:]
    losses = soft_cross_entropy(logits, targets)  # (B,)
    if pool_temperature != 1.0:
        cooled = soft_cross_entropy(logits[num_labeled:].float() / pool_temperature, pool_targets)
        losses = torch.cat([losses[:num_labeled], cooled * pool_temperature**2])
    counts = counts or (num_labeled, len(pool_targets))
    return _normalized(losses, num_labeled, counts, normalization)


def _normalized(
    losses: Tensor, num_labeled: int, counts: tuple[int, int], normalization: Normalization
) -> Tensor:
    """The sum of the losses (B,) of a part of a batch, divided as those of the batch."""
    if normalization == "equal" and all(counts):
        return losses[:num_labeled].sum() / counts[0] + losses[num_labeled:].sum() / counts[1]
    # official: a longer pool part gives a larger loss
    divisor = counts[0] if normalization == "official" and all(counts) else sum(counts)
    return losses.sum() / divisor


def fairness_loss(
    logits: Tensor, targets: Tensor, expected: Tensor, total: Callable[[Tensor], Tensor] = torch.clone
) -> Tensor:
    """Compute FreeMatch's fairness term Σ_k e_k log q_k (arXiv 2205.07246, eq. 11 and 12).

    q is the mean prediction over the rows that have a target, divided by the share of these rows that are
    predicted as each class, and normalised. Without such rows the term is 0.

    Args:
        logits: (N, K) of the student, on the strongly augmented pool images.
        targets: (N, K) labels of these images; rows of zeros have no label.
        expected: (K,) e, normalised ratio of the mean prediction and the share of each class over earlier
            steps.
        total: sum of a tensor over all parts of a batch, of which these rows are one. Default: they are all.

    Returns:
        () float32, the term of the whole batch.
    """
    kept = targets.any(dim=1).float()  # (N,)
    probs = logits.float().softmax(dim=1)
    labels = F.one_hot(logits.argmax(dim=1), logits.shape[1]).float()
    # (2 K + 1,): sums of predictions, of predicted classes, and of rows
    sums = total(torch.cat([kept @ probs, kept @ labels, kept.sum()[None]]))
    count = sums[-1].clamp(min=1)
    mean, share = sums[:-1].view(2, -1) / count  # (K,) each
    # As in the published code: the ratio of a class without predictions is 0, and 1e-12 is added to q.
    ratio = torch.where(share > 0, mean / torch.where(share > 0, share, 1.0), 0.0)
    ratio = ratio / ratio.sum().clamp(min=1e-12)
    return (expected * (ratio + 1e-12).log()).sum() * (sums[-1] > 0)
