"""What the teacher is asked, and what of the answer is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import RunError
from noisystudent.pseudo_label.parts import DENSE_CLASSES
from noisystudent.pseudo_label.top import top_k

Columns = dict[str, NDArray[Any]]

Answer = Callable[[], NDArray[np.float32]]
"""Gives the probabilities (b, K) of b images; NaN stands first where the logits are not finite."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model's word on images.

    Attributes:
        predict: (b, 3, S, S) uint8 -> (b, num_classes) logits.
        num_classes: number of classes, K.
        temperature: of the softmax.
        top: how many probabilities are stored above 256 classes.
    """

    predict: Callable[[Tensor], Tensor]
    num_classes: int
    temperature: float
    top: int

    @property
    def stored(self) -> int:
        """How many probabilities are stored."""
        return self.num_classes if self.dense else min(self.top, self.num_classes)

    @property
    def dense(self) -> bool:
        """Whether that is all."""
        return self.num_classes <= DENSE_CLASSES

    @torch.inference_mode()
    def ask(self, images: Tensor) -> Answer:
        """What it says of a batch of images; a GPU is not waited for until the answer is called.

        Raises:
            RunError: the logits are not of K classes.
        """
        logits = self.predict(images).float()
        wanted = (len(images), self.num_classes)
        if logits.shape != wanted:
            raise RunError(
                f"the teacher's logits are {tuple(logits.shape)}, not {wanted}; is it another run's?"
            )
        # a sum is finite only if all logits are; softmax alone would hide one of minus infinity
        diverged = ~torch.isfinite(logits.sum(dim=1))
        probs = torch.softmax(logits if self.temperature == 1 else logits / self.temperature, dim=1)
        probs[:, 0].masked_fill_(diverged, torch.nan)
        return _fetch(probs)

    def columns(self, probs: NDArray[np.float32]) -> Columns:
        """(b, K) probabilities -> the columns that depend on them, b rows each."""
        if self.dense:
            label = probs.argmax(axis=1)  # of equal probabilities the first
            confidence = np.take_along_axis(probs, label[:, None], axis=1)[:, 0]
            return {"label": label, "confidence": confidence, "probs": _half(probs)}
        classes, found = top_k(probs, self.stored)
        return {
            "label": classes[:, 0],
            "confidence": found[:, 0],
            "top_classes": classes,
            "top_probs": _half(found),
            "tail": np.maximum(1 - found.sum(axis=1, dtype=np.float64), 0),
        }

    def fields(self) -> list[pa.Field]:
        """The types of `columns`."""
        always = [pa.field("label", pa.int32()), pa.field("confidence", pa.float32())]
        if self.dense:
            return [*always, pa.field("probs", pa.list_(pa.float16(), self.num_classes))]
        classes, probs = (pa.list_(kind, self.stored) for kind in (pa.int32(), pa.float16()))
        top = [pa.field("top_classes", classes), pa.field("top_probs", probs)]
        return [*always, *top, pa.field("tail", pa.float32())]


def _fetch(values: Tensor) -> Answer:
    if not values.is_cuda:
        return values.cpu().numpy
    arriving = values.to("cpu", non_blocking=True)  # into pinned memory
    arrival = torch.cuda.Event()
    arrival.record()

    def wait() -> NDArray[np.float32]:
        arrival.synchronize()
        return arriving.numpy()

    return wait


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    return torch.from_numpy(np.ascontiguousarray(values)).half().numpy()  # numpy's own is ten times slower
