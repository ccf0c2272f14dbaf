"""Several teachers that label images together, each at its own resolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import tee

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.console import Progress
from noisystudent.inference.predictor import Predictor, Rows
from noisystudent.records import Vote


@dataclass(frozen=True, slots=True)
class JointBatch:
    """Some images as all teachers are given them.

    Attributes:
        rows: (B,) rows of the images.
        views: (B, 3, S, S) uint8 of each stream; teachers of one resolution share a stream.
    """

    rows: Rows
    views: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One of several teachers.

    Attributes:
        model: a predictor, or its stored probabilities (N, K) of all images, in the order of the classes.
        stream: number of the stream with its views; stored probabilities have none.
        order: (K,) int64 output for each class; None: the outputs are in the order of the classes.
    """

    model: Predictor | NDArray[np.float32]
    stream: int = 0
    order: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointPredictor:
    """Teachers whose probabilities are averaged.

    Attributes:
        members: the teachers.
        weights: weight of each; they sum to 1.
        device: device of the averages.
        batch_size: images in one forward pass of each, unless another is measured.
    """

    members: tuple[Member, ...]
    weights: tuple[float, ...]
    device: torch.device
    batch_size: int

    @property
    def resolution(self) -> int:
        """Side in pixels of the views of the first teacher with a network."""
        return next(each.model.resolution for each in self.members if isinstance(each.model, Predictor))

    def prepared(self, images: int, most: int, *, progress: Progress) -> tuple[JointPredictor, int]:
        """Return the same teachers in the forms that are fastest, and their batch size.

        See `Predictor.prepared`. All have one batch size: the one that suits the largest resolution.
        """
        members, size, limit = list(self.members), self.batch_size, most
        models = [(at, each.model) for at, each in enumerate(members) if isinstance(each.model, Predictor)]
        for at, model in sorted(models, key=lambda each: -each[1].resolution):
            ready, size = replace(model, batch_size=size).prepared(images, limit, progress=progress)
            members[at], limit = replace(members[at], model=ready), size
        return replace(self, members=tuple(members), batch_size=size), size

    @torch.inference_mode()
    def __call__(self, batch: JointBatch) -> Vote:
        """Average what all teachers predict for a batch of B images."""
        predicted = [self._predict(member, batch) for member in self.members]
        probs = torch.stack([each for each, _ in predicted])
        energies = [energy for _, energy in predicted if energy is not None]
        energy = torch.stack(energies).mean(dim=0) if energies else None
        if len(self.members) == 1:
            return Vote(probs[0], None, energy)
        mean = torch.zeros_like(probs[0])
        for weight, each in zip(self.weights, probs, strict=True):
            mean += weight * each
        label = mean.argmax(dim=1)  # the first class of those with equal probabilities
        of_label = probs[:, torch.arange(len(label), device=self.device), label]
        return Vote(mean, (of_label >= probs.amax(dim=2)).float().mean(dim=0), energy)

    def logits(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) uint8 for all teachers -> logits (B, K) whose softmax is the average."""
        probs = self(JointBatch(np.arange(len(images)), (images,))).probs
        return probs.clamp(min=torch.finfo(torch.float32).tiny).log()

    def _predict(self, member: Member, batch: JointBatch) -> tuple[Tensor, Tensor | None]:
        """(B, K) probabilities that one teacher predicts, and its energies (B,) if it has logits."""
        if not isinstance(member.model, Predictor):
            return torch.from_numpy(np.asarray(member.model[batch.rows])).to(self.device), None
        logits = member.model(batch.views[member.stream]).to(self.device)
        # A softmax would hide a logit of minus infinity; the encoder refuses NaN.
        diverged = ~torch.isfinite(logits.sum(dim=1, keepdim=True))
        probs = torch.softmax(logits, dim=1).masked_fill(diverged, torch.nan)
        return probs if member.order is None else probs[:, member.order], logits.logsumexp(dim=1)


Stream = Callable[[Iterator[Rows]], Iterator[Tensor]]
"""Rows of each batch -> views (B, 3, S, S) uint8 of each batch."""


def joint_batches(streams: Sequence[Stream], requests: Iterator[Rows]) -> Iterator[JointBatch]:
    """Yield the batches of all streams side by side."""
    wanted, *copies = tee(requests, 1 + len(streams))
    views = (stream(copy) for stream, copy in zip(streams, copies, strict=True))
    for rows, *batch in zip(wanted, *views, strict=True):
        yield JointBatch(rows, tuple(batch))
