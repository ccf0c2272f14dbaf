"""Convert the logits of the teacher to the columns of a Parquet part."""

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
from noisystudent.records import Predict

Columns = dict[str, NDArray[Any]]

PendingProbs = Callable[[], NDArray[np.float32]]
"""Waits for the probabilities (b, K) of a batch. Rows with non-finite logits have NaN in the first class."""

_CLASS_BITS = np.int64(0xFFFF_FFFF)  # the low 32 bits of a sorting key


@dataclass(frozen=True, slots=True)
class Encoder:
    """Runs a teacher on batches of images and encodes its probabilities.

    Attributes:
        predict: the teacher, (b, 3, S, S) uint8 -> (b, num_classes) logits.
        num_classes: number of classes, K.
        temperature: temperature of the softmax.
        top: number of probabilities stored for each image if there are more than 256 classes.
    """

    predict: Predict
    num_classes: int
    temperature: float
    top: int

    @property
    def stored(self) -> int:
        """Number of probabilities stored for each image."""
        return self.num_classes if self.dense else min(self.top, self.num_classes)

    @property
    def dense(self) -> bool:
        """True if every class probability is stored, not only the top k."""
        return self.num_classes <= DENSE_CLASSES

    @torch.inference_mode()
    def probs(self, images: Tensor) -> PendingProbs:
        """Start to compute the probabilities of a batch of images.

        The host waits for the GPU only when it calls the returned function.

        Raises:
            RunError: the logits do not have K classes.
        """
        logits = self.predict(images).float()
        expected = (len(images), self.num_classes)
        if logits.shape != expected:
            raise RunError(
                f"the teacher's logits are {tuple(logits.shape)}, not {expected}; use its own classes"
            )
        # The sum of a row is finite only if all its logits are. Softmax would hide a logit of minus infinity.
        # A NaN in the probabilities marks the row, so that no second array has to be copied to the host.
        diverged = ~torch.isfinite(logits.sum(dim=1))
        probs = torch.softmax(logits if self.temperature == 1 else logits / self.temperature, dim=1)
        probs[:, 0].masked_fill_(diverged, torch.nan)
        return _to_host(probs)

    def columns(self, probs: NDArray[np.float32]) -> Columns:
        """Convert probabilities (b, K) to the columns of the part that depend on them, b rows each."""
        if self.dense:
            label = probs.argmax(axis=1)  # the first class of those with equal probabilities
            confidence = np.take_along_axis(probs, label[:, None], axis=1)[:, 0]
            return {"label": label, "confidence": confidence, "probs": _half(probs)}
        classes, top_probs = top_k(probs, self.stored)
        return {
            "label": classes[:, 0],
            "confidence": top_probs[:, 0],
            "top_classes": classes,
            "top_probs": _half(top_probs),
            "tail": np.maximum(1 - top_probs.sum(axis=1, dtype=np.float64), 0),
        }

    def fields(self) -> list[pa.Field]:
        """Names and types of the columns from `columns`."""
        common = [pa.field("label", pa.int32()), pa.field("confidence", pa.float32())]
        if self.dense:
            return [*common, pa.field("probs", pa.list_(pa.float16(), self.num_classes))]
        classes, probs = (pa.list_(kind, self.stored) for kind in (pa.int32(), pa.float16()))
        top = [pa.field("top_classes", classes), pa.field("top_probs", probs)]
        return [*common, *top, pa.field("tail", pa.float32())]


def _to_host(values: Tensor) -> PendingProbs:
    """Start to copy values to the host; the returned function waits for the copy."""
    if not values.is_cuda:
        return values.cpu().numpy
    copied = values.to("cpu", non_blocking=True)  # PyTorch uses pinned memory for this
    end_of_copy = torch.cuda.Event()
    end_of_copy.record(torch.cuda.current_stream(values.device))  # not of the current device

    def wait() -> NDArray[np.float32]:
        end_of_copy.synchronize()
        return copied.numpy()

    return wait


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    # torch converts to float16 about ten times faster than numpy
    return torch.from_numpy(np.ascontiguousarray(values)).half().numpy()


def top_k(probs: NDArray[np.float32], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Find the k most likely classes of each row, most likely first, without sorting all classes.

    The result is exact. Of classes with equal probabilities, the lowest comes first.

    Args:
        probs: (b, K) probabilities, at least 0 and not NaN.
        k: number of classes, 1 to K.

    Returns:
        Classes (b, k) int32 and their probabilities (b, k) float32.
    """
    flat = np.flatnonzero(probs >= _lower_bound(probs, k))  # candidates, slightly more than k of each row
    rows, classes = np.divmod(flat, probs.shape[1])
    counts = np.bincount(rows, minlength=len(probs))
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    keys = np.zeros((len(probs), counts.max(initial=k)), np.int64)
    # One int64 key for each candidate. The high 32 bits are the bits of the probability: floats that are at
    # least 0 are in the order of their bits. The low 32 bits fall with the class, so that of equal
    # probabilities the lowest class has the largest key.
    bits = probs.reshape(-1)[flat].view(np.int32).astype(np.int64)
    keys[rows, places] = bits << 32 | _CLASS_BITS - classes
    best = np.sort(keys, axis=1)[:, : -k - 1 : -1]  # the last k, in falling order
    top_classes = (_CLASS_BITS - (best & _CLASS_BITS)).astype(np.int32)
    return top_classes, (best >> 32).astype(np.int32).view(np.float32)


def _lower_bound(probs: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """(b, 1) a probability that at least k classes of each row reach.

    It is the k-th largest of the maxima of groups of classes. With about 4 k groups, few groups contain two
    of the k most likely classes, so only few other classes reach it.
    """
    width = max(1, probs.shape[1] // (4 * k))
    groups = probs.shape[1] // width
    maxima = probs[:, : groups * width].reshape(len(probs), width, groups).max(axis=1)
    return np.partition(maxima, groups - k, axis=1)[:, groups - k, None]
