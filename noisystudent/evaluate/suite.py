"""One model on named tests: images to probabilities, probabilities to numbers, both kept on disk."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent import rundir
from noisystudent.errors import InputError, RunError
from noisystudent.evaluate import metrics
from noisystudent.records import Metric

Predict = Callable[[Tensor], Tensor]
_WAITING = 32
"""Batches whose probabilities are fetched from the device at once: 64 MiB if of 512 images, 1,000 classes."""


class Predictions(NamedTuple):
    """What one model said about one set of images.

    Attributes:
        probs: (N, K) float32, rows sum to 1.
        labels: (N,) int64.
    """

    probs: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Test:
    """A labeled set of images that can be read from its beginning any number of times.

    Attributes:
        batches: starts over at every call; yields (B, 3, S, S) uint8 on the model's device.
        labels: (N,) int64, in the order of the batches.
    """

    batches: Callable[[], Iterable[Tensor]]
    labels: NDArray[np.int64]


def predict_probs(predict: Predict, batches: Iterable[Tensor]) -> NDArray[np.float32]:
    """Class probabilities (N, K) of every image, in order.

    Args:
        predict: images (B, 3, S, S) uint8 to logits (B, K) in any float type, in evaluation mode.
        batches: the images.

    Raises:
        InputError: no batches.
        RunError: a logit is not finite.
    """
    found: list[NDArray[np.float32]] = []
    waiting: list[Tensor] = []  # on the device: fetching one waits until all before it are computed
    with torch.inference_mode():
        for images in batches:
            waiting.append(predict(images).float().softmax(dim=1))
            if len(waiting) == _WAITING:
                _fetch(waiting, found)
        _fetch(waiting, found)
    if not found:
        raise InputError("there are no images to evaluate on")
    return np.concatenate(found)


def _fetch(waiting: list[Tensor], found: list[NDArray[np.float32]]) -> None:
    """Move what is waiting to the end of `found`."""
    for device_probs in waiting:
        probs = device_probs.cpu().numpy()
        if not np.isfinite(probs).all():  # an infinite or NaN logit makes its whole row NaN
            first = sum(map(len, found))
            raise RunError(f"the model's output is not finite on images {first} to {first + len(probs) - 1}")
        found.append(probs)
    waiting.clear()


def score(probs: metrics.Floats, labels: metrics.Ints, ece_bins: int = 15) -> dict[str, float]:
    """{top1, top5, nll, ece, brier}: shares in 0 to 1, nll in nats; top5 is top-K below five classes."""
    return {
        "top1": metrics.top_k(probs, labels, 1),
        "top5": metrics.top_k(probs, labels, 5),
        "nll": metrics.nll(probs, labels),
        "ece": metrics.ece(probs, labels, ece_bins),
        "brier": metrics.brier(probs, labels),
    }


def evaluate(predict: Predict, tests: Mapping[str, Test], ece_bins: int = 15) -> list[Metric]:
    """Every number of `score` on every test, tests in the order given."""
    rows: list[Metric] = []
    for name, test in tests.items():
        numbers = score(predict_probs(predict, test.batches()), test.labels, ece_bins)
        rows += [Metric(name, key, value) for key, value in numbers.items()]
    return rows


def save_predictions(path: Path, probs: metrics.Floats, labels: metrics.Ints) -> None:
    """Write an .npz of `probs` float32 and `labels` int64, atomically.

    Raises:
        InputError: the arrays do not match.
    """
    metrics.check(probs, labels)
    with rundir.atomic(path) as partial, partial.open("wb") as file:
        np.savez(file, probs=probs.astype(np.float32), labels=labels.astype(np.int64))


def load_predictions(path: Path) -> Predictions:
    """Read what `save_predictions` wrote; never unpickles.

    Raises:
        RunError: the file is missing, truncated or something else.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            found = Predictions(file["probs"], file["labels"])
        metrics.check(found.probs, found.labels)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, InputError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path} does not hold predictions ({reason}); delete it and run again") from error
    return found
