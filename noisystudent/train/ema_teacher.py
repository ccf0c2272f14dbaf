"""The moving average as a teacher that labels the pool images of each step (FixMatch, FreeMatch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import get_total_norm

from noisystudent.distributed import Group


class Averages(NamedTuple):
    """Moving averages of what the teacher predicted for the pool images (arXiv 2205.07246, §3.1 and §3.2).

    Attributes:
        confidence: () float32, mean confidence.
        probs: (K,) float32, mean prediction.
        shares: (K,) float32, share of the images that were predicted as each class.
    """

    confidence: Tensor
    probs: Tensor
    shares: Tensor

    @classmethod
    def start(cls, num_classes: int, device: torch.device) -> Averages:
        """Averages of step 0: 1 / K everywhere."""
        uniform = torch.full((num_classes,), 1 / num_classes, device=device)
        return cls(uniform[0].clone(), uniform.clone(), uniform.clone())

    def updated(self, probs: Tensor, decay: Tensor, everyone: Group, count: int) -> Averages:
        """New averages, with the predictions of a step.

        Args:
            probs: (N, K) of the rows of this process.
            decay: () float32.
            everyone: the processes that share the batch.
            count: number of rows of all of them.
        """
        confidence, labels = probs.max(dim=1)
        shares = F.one_hot(labels, probs.shape[1]).float().sum(dim=0)
        new = (confidence.sum(), probs.sum(dim=0), shares)
        everyone.sum(*new)
        means = [value / count for value in new]
        return Averages(*(mean + decay * (old - mean) for old, mean in zip(self, means, strict=True)))

    def become(self, new: Averages) -> None:
        """Take the values of `new`. The memory stays, because a captured CUDA graph reads it."""
        for average, value in zip(self, new, strict=True):
            average.copy_(value)

    def thresholds(self) -> Tensor:
        """(K,) threshold of each class: the mean confidence, lower for classes that are predicted less."""
        return self.confidence * self.probs / self.probs.max()

    def expected(self) -> Tensor:
        """(K,) normalised ratio of `probs` and `shares`, for `losses.fairness_loss`."""
        ratio = torch.where(self.shares > 0, self.probs / self.shares, 0.0)
        return ratio / ratio.sum()

    def norm(self) -> Tensor:
        """() float32, finite only if every average is."""
        return get_total_norm(list(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class EmaTeacher:
    """How the moving average labels pool images.

    Attributes:
        temperature: of the softmax of the labels. The confidence is that of temperature 1, so that sharper
            labels do not move the threshold.
        threshold: smallest confidence of a label.
        adaptive: True: thresholds of FreeMatch, from `Averages`, instead of `threshold`.
        fairness: weight of FreeMatch's fairness term in the loss.
        first_step: step from which the moving average labels; stored labels are used before it.
    """

    temperature: float = 1.0
    threshold: float = 0.95
    adaptive: bool = False
    fairness: float = 0.0
    first_step: int = 0

    def targets(self, logits: Tensor, averages: Averages | None = None) -> Tensor:
        """Return targets (N, K) float32; rows of images below their threshold are 0.

        Args:
            logits: (N, K) of the moving average.
            averages: with the predictions of this step, if thresholds are adaptive.
        """
        probs = logits.float().softmax(dim=1)
        confidence, labels = probs.max(dim=1)
        threshold = self.threshold if averages is None else averages.thresholds()[labels]
        targets = (logits.float() / self.temperature).softmax(dim=1)
        return torch.where((confidence >= threshold)[:, None], targets, 0.0)
