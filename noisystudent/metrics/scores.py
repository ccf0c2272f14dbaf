"""Scores of one model on one set of images, and the files that hold its predicted probabilities."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisystudent.errors import InputError, RunError
from noisystudent.metrics import classification
from noisystudent.metrics.classification import Floats, Ints
from noisystudent.run.files import atomic


class Predictions(NamedTuple):
    """Probabilities that one model predicts for one set of images, and the true labels.

    Attributes:
        probs: (N, K) float32; each row sums to 1.
        labels: (N,) int64.
    """

    probs: NDArray[np.float32]
    labels: NDArray[np.int64]


def score(probs: Floats, labels: Ints, bins: int) -> dict[str, float]:
    """Scores {top1, top5, nll, ece, brier}: top1, top5 and ece are shares in 0 to 1, nll is in nats."""
    return {
        "top1": classification.top_k(probs, labels, 1),
        "top5": classification.top_k(probs, labels, 5),
        "nll": classification.nll(probs, labels),
        "ece": classification.ece(probs, labels, bins),
        "brier": classification.brier(probs, labels),
    }


def calibration(probs: Floats, labels: Ints, bins: int) -> dict[str, float]:
    """Scores {nll, brier, ece, rms, aurra}, and rms_official if there are images for two of its bins."""
    numbers = {
        "nll": classification.nll(probs, labels),
        "brier": classification.brier(probs, labels),
        "ece": classification.ece(probs, labels, bins),
        "rms": classification.rms_calibration(probs, labels),
        "aurra": classification.aurra(probs, labels),
    }
    if len(probs) >= 2 * classification.RMS_BIN:
        numbers["rms_official"] = classification.rms_official(probs, labels)
    return numbers


def save_predictions(
    path: Path, probs: Floats, labels: Ints, energies: NDArray[np.float32] | None = None
) -> None:
    """Write an .npz file with `probs` as float32 and `labels` as int64, and with energies (N,), atomically.

    Raises:
        InputError: the arrays do not match.
    """
    classification.check(probs, labels)
    columns: dict[str, Any] = {"probs": probs.astype(np.float32), "labels": labels.astype(np.int64)}
    if energies is not None:
        columns["energies"] = energies
    with atomic(path) as partial, partial.open("wb") as file:
        np.savez(file, **columns)


def load_predictions(path: Path) -> Predictions:
    """Read a file that `save_predictions` wrote. No pickled code is read.

    Raises:
        RunError: the file is missing, truncated or not such a file.
    """
    return _load(path)[0]


def load_energies(path: Path) -> NDArray[np.float32] | None:
    """Read the energies in such a file; None if it has none. Raises as `load_predictions`."""
    return _load(path)[1]


def _load(path: Path) -> tuple[Predictions, NDArray[np.float32] | None]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            predictions = Predictions(file["probs"], file["labels"])
            energies = file.get("energies")
        classification.check(predictions.probs, predictions.labels)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, InputError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path} does not hold predictions ({reason})") from error
    return predictions, energies
