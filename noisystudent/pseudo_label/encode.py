"""Convert the logits of the teacher to the columns of a Parquet part."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import RunError
from noisystudent.pseudo_label.parts import DENSE_CLASSES
from noisystudent.records import Vote

Columns = dict[str, NDArray[Any]]
Images = TypeVar("Images", bound=Sized)
"""A batch of images, or of what several teachers are given."""

_CLASS_BITS = 0xFFFF_FFFF  # the low 32 bits of a sorting key
_NAN = 0x7FC0_0000 << 32  # key whose probability is NaN


@dataclass(frozen=True, slots=True)
class Encoder:
    """Runs a teacher on batches of images and encodes its probabilities.

    Attributes:
        num_classes: number of classes, K.
        temperature: temperature of the stored probabilities. Label and confidence have temperature 1.
        top: number of probabilities stored for each image if there are more than 256 classes.
        voters: number of teachers. More than one have the column `agreement`.
    """

    num_classes: int
    temperature: float
    top: int
    voters: int = 1

    @property
    def stored(self) -> int:
        """Number of probabilities stored for each image."""
        return self.num_classes if self.dense else min(self.top, self.num_classes)

    @property
    def dense(self) -> bool:
        """True if every class probability is stored, not only the top k."""
        return self.num_classes <= DENSE_CLASSES

    @torch.inference_mode()
    def encode(self, predict: Callable[[Images], Tensor | Vote], images: Images) -> Tensor:
        """Compute on the device what `columns` needs of a batch of b images, as one tensor.

        Args:
            predict: the teacher, (b, 3, S, S) uint8 -> (b, num_classes) logits; or several teachers.
            images: (b, 3, S, S) uint8; or what several teachers are given.

        Returns:
            (b, K) float32 probabilities if all are stored, otherwise (b, k) int64 keys as of `top_keys`. At
            another temperature than 1 there are columns before them: those of temperature 1, or its first
            key. A row with a logit that is not finite has the confidence NaN. The first column is the energy,
            and the second the agreement of several teachers; of keys their bits.

        Raises:
            RunError: the logits do not have K classes.
        """
        predicted = predict(images)
        values = predicted if isinstance(predicted, Tensor) else predicted.probs
        expected = (len(images), self.num_classes)
        if values.shape != expected:
            raise RunError(
                f"the teacher's logits are {tuple(values.shape)}, not {expected}; use its own classes"
            )
        if isinstance(predicted, Tensor):
            logits = predicted.float()
            encoded, first = self._encoded(torch.softmax(logits, dim=1), logits), [logits.logsumexp(dim=1)]
        else:
            probs, agreement, energy = predicted
            # A probability can underflow to 0, whose logarithm is infinite, so it is clipped. NaN stays NaN.
            encoded = self._encoded(probs.clone(), probs.clamp(min=torch.finfo(torch.float32).tiny).log())
            first = [torch.full_like(probs[:, 0], torch.nan) if energy is None else energy]
            first += [] if agreement is None else [agreement]
        columns = torch.stack(first, dim=1)
        return torch.cat([columns if self.dense else columns.view(torch.int32).long(), encoded], dim=1)

    def _encoded(self, plain: Tensor, logits: Tensor) -> Tensor:
        """Columns of `encode` without the agreement; `plain` is softmax(logits)."""
        # The sum of a row is finite only if all its logits are. Softmax would hide a logit of minus infinity.
        # A NaN in the result marks the row, so that no second array has to be copied to the host.
        diverged = ~torch.isfinite(logits.sum(dim=1))
        if self.temperature == 1:
            encoded = plain if self.dense else top_keys(plain, self.stored)
        else:
            targets = soft_targets(logits, self.temperature)
            both = (plain, targets) if self.dense else (top_keys(plain, 1), top_keys(targets, self.stored))
            encoded = torch.cat(both, dim=1)
        if self.dense:
            encoded[:, 0].masked_fill_(diverged, torch.nan)
            return encoded
        return encoded.masked_fill_(diverged[:, None], _NAN)

    def columns(self, encoded: NDArray[Any]) -> Columns:
        """Convert the result of `encode` to the columns of the part that depend on it, b rows each."""
        names = self._first
        first, rest = encoded[:, : len(names)], self._columns(encoded[:, len(names) :])
        if not self.dense:
            first = first.astype(np.int32).view(np.float32)
        columns = {"label": rest.pop("label"), "confidence": rest.pop("confidence")}
        return columns | dict(zip(names, first.T, strict=True)) | rest

    @property
    def _first(self) -> tuple[str, ...]:
        """Names of the columns that `encode` puts first."""
        return ("energy", "agreement") if self.voters > 1 else ("energy",)

    def _columns(self, encoded: NDArray[Any]) -> Columns:
        targets = encoded[:, -self.stored :]  # at temperature 1 these are all columns
        if self.dense:
            plain = encoded[:, : self.num_classes]
            label = plain.argmax(axis=1)  # the first class of those with equal probabilities
            confidence = np.take_along_axis(plain, label[:, None], axis=1)[:, 0]
            return {"label": label, "confidence": confidence, "probs": _half(targets)}
        (first_class, first_prob), (classes, top_probs) = split_keys(encoded[:, :1]), split_keys(targets)
        return {
            "label": first_class[:, 0],
            "confidence": first_prob[:, 0],
            "top_classes": classes,
            "top_probs": _half(top_probs),
            "tail": np.maximum(1 - top_probs.sum(axis=1, dtype=np.float64), 0),
        }

    def fields(self) -> list[pa.Field]:
        """Names and types of the columns from `columns`."""
        common = [pa.field("label", pa.int32()), pa.field("confidence", pa.float32())]
        common += [pa.field(name, pa.float32()) for name in self._first]
        if self.dense:
            return [*common, pa.field("probs", pa.list_(pa.float16(), self.num_classes))]
        classes, probs = (pa.list_(kind, self.stored) for kind in (pa.int32(), pa.float16()))
        top = [pa.field("top_classes", classes), pa.field("top_probs", probs)]
        return [*common, *top, pa.field("tail", pa.float32())]


def soft_targets(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature), (b, K) float32.

    At a very low temperature it is one-hot: the largest logit is subtracted first, so that no quotient is
    plus infinity.
    """
    if temperature == 1:
        return torch.softmax(logits, dim=1)
    return torch.softmax((logits - logits.amax(dim=1, keepdim=True)) / temperature, dim=1)


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    # torch converts to float16 about ten times faster than numpy
    return torch.from_numpy(np.ascontiguousarray(values)).half().numpy()


def top_keys(probs: Tensor, k: int) -> Tensor:
    """Find the k most likely classes of each row, most likely first.

    The result is exact and the same on every device. Of classes with equal probabilities, the lowest comes
    first.

    Args:
        probs: (b, K) float32 probabilities, at least 0. The keys of a row with NaN are undefined.
        k: number of classes, 1 to K.

    Returns:
        (b, k) int64 keys in falling order, one for each class and its probability; see `split_keys`. The
        high 32 bits are the bits of the probability: floats that are at least 0 are in the order of their
        bits. The low 32 bits fall with the class, so that of equal probabilities the lowest class has the
        largest key.
    """
    if not probs.is_cuda:
        return torch.from_numpy(_top_keys_on_cpu(probs.numpy(), k))
    return top_keys_on_gpu(probs, k)


def split_keys(keys: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Split keys (b, k) into classes (b, k) int32 and their probabilities (b, k) float32."""
    classes = (_CLASS_BITS - (keys & _CLASS_BITS)).astype(np.int32)
    return classes, (keys >> 32).astype(np.int32).view(np.float32)


def top_keys_on_gpu(probs: Tensor, k: int) -> Tensor:
    """`top_keys` without host synchronisation, for any device; on a CPU it takes three times as long."""
    classes = torch.arange(probs.shape[1], device=probs.device)
    keys = probs.contiguous().view(torch.int32).long() << 32 | _CLASS_BITS - classes
    return keys.topk(k, dim=1).values


def _top_keys_on_cpu(probs: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """`top_keys` without sorting all classes."""
    flat = np.flatnonzero(probs >= _lower_bound(probs, k))  # candidates, slightly more than k of each row
    rows, classes = np.divmod(flat, probs.shape[1])
    counts = np.bincount(rows, minlength=len(probs))
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    keys = np.zeros((len(probs), counts.max(initial=k)), np.int64)
    bits = probs.reshape(-1)[flat].view(np.int32).astype(np.int64)
    keys[rows, places] = bits << 32 | _CLASS_BITS - classes
    return np.sort(keys, axis=1)[:, : -k - 1 : -1].copy()  # the last k, in falling order


def _lower_bound(probs: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """(b, 1) a probability that at least k classes of each row reach.

    It is the k-th largest of the maxima of groups of classes. With about 4 k groups, few groups contain two
    of the k most likely classes, so only few other classes reach it.
    """
    width = max(1, probs.shape[1] // (4 * k))
    groups = probs.shape[1] // width
    maxima = probs[:, : groups * width].reshape(len(probs), width, groups).max(axis=1)
    return np.partition(maxima, groups - k, axis=1)[:, groups - k, None]
