"""What the last model and the teachers predict for some images of the pool."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from noisystudent.inference.load import stored_temperature
from noisystudent.metrics.temperature import scaled
from noisystudent.pseudo_label import has_agreement
from noisystudent.pseudo_label.parts import iterate
from noisystudent.records import PseudoLabels
from noisystudent.review.features import features_of
from noisystudent.run.stages import Status, state
from noisystudent.self_training.context import Context
from noisystudent.self_training.training import Training, predictor_of_sets


@dataclass(frozen=True, slots=True)
class Opinion:
    """Labels of some pool images by the first teachers.

    Attributes:
        label: (n,) most likely class.
        confidence: (n,) its probability.
        agreement: (n,) share of the teachers that predict it; 1 for a single teacher.
    """

    label: NDArray[np.int64]
    confidence: NDArray[np.float64]
    agreement: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PoolImages:
    """Some images of the pool.

    Attributes:
        rows: (n,) ascending rows of the pool.
        probs: (n, K) probabilities by the last model, at the temperature that was fitted on val.
        features: (n, F) its features, of length 1.
        teachers: labels by the first teachers. None: they have not labelled the pool.
    """

    rows: NDArray[np.int64]
    probs: NDArray[np.float32]
    features: NDArray[np.float32]
    teachers: Opinion | None


def pool_images(context: Context, training: Training, rows: NDArray[np.int64]) -> PoolImages:
    """Predict some images of the pool by the last model, and read the labels that they have.

    Args:
        context: the run.
        training: its last model.
        rows: (n,) ascending rows of the pool, at least one.
    """
    pool = training.sets.pool
    probs = predictor_of_sets(training).probs(pool, rows)
    calibrated = scaled(probs, stored_temperature(training.folder.weights))
    return PoolImages(rows, calibrated, features_of(training, pool, rows), _opinion(context, rows))


def _opinion(context: Context, rows: NDArray[np.int64]) -> Opinion | None:
    iterations = context.graph.iterations
    if not iterations or state(iterations[0].labels).status is not Status.DONE:
        return None
    labels = PseudoLabels(iterations[0].labels.path, len(context.dataset.classes))
    columns = ["label", "confidence", *(["agreement"] if has_agreement(labels) else [])]
    values = {name: np.ones(len(rows)) for name in ("label", "confidence", "agreement")}
    for batch in iterate(labels, ["row", *columns]):
        row = batch["row"].to_numpy()
        at = np.arange(*np.searchsorted(rows, [row[0], row[-1] + 1]))  # rows of a part are without gaps
        for name in columns:
            values[name][at] = batch[name].to_numpy()[rows[at] - row[0]]
    return Opinion(values["label"].astype(np.int64), values["confidence"], values["agreement"])
