"""What models predict for labelled images whose labels they have not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from noisystudent.data.folds import divide
from noisystudent.data.imageset import ImageSet
from noisystudent.metrics import classification, scores
from noisystudent.review.features import features_of
from noisystudent.run.stages import Status, state
from noisystudent.self_training.context import Context
from noisystudent.self_training.training import Training

FOLDS = 5
"""Folds of the linear layers that take the place of the folds of the run."""
_PENALTIES = (0.1, 1.0, 10.0)  # inverse weight decays, among which is chosen out of fold


@dataclass(frozen=True, slots=True)
class Unseen:
    """Predictions for labelled images by models that were not trained on them.

    Attributes:
        images: the set, labelled or val.
        rows: (n,) its rows.
        probs: (n, K) probabilities.
        labels: (n,) given labels.
        origin: how the predictions were made, in a sentence.
    """

    images: ImageSet
    rows: NDArray[np.int64]
    probs: NDArray[np.float32]
    labels: NDArray[np.int64]
    origin: str


def unseen_predictions(context: Context, training: Training, rows: NDArray[np.int64]) -> list[Unseen]:
    """Return predictions out of fold for the labelled images, and those of the last model for val.

    Without folds, linear layers on the features of the last model are trained out of fold, for `rows` alone.

    Args:
        context: the run.
        training: its last model.
        rows: (n,) rows of the labelled images.
    """
    predictions, stage = list[Unseen](), context.graph.out_of_fold
    if stage is not None and state(stage).status is Status.DONE:
        known = scores.load_predictions(stage.path)
        every = np.arange(len(known.labels))
        origin = f"{len(context.graph.folds)} networks predicted each label without having seen it."
        predictions.append(Unseen(context.dataset.labeled, every, *known, origin))
    else:
        predictions.append(_by_linear_layers(context, training, rows))
    file = training.folder.predictions("val")
    if file.is_file():
        probs, labels = scores.load_predictions(file)
        origin = "The last model predicted val, on which nothing was trained."
        predictions.append(Unseen(context.dataset.val, np.arange(len(labels)), probs, labels, origin))
    return predictions


def _by_linear_layers(context: Context, training: Training, rows: NDArray[np.int64]) -> Unseen:
    """Return what linear layers predict out of fold for some labelled images."""
    images = context.dataset.labeled
    labels = images.labels[rows]
    fold_of = divide(images.content_hash[rows], labels, min(FOLDS, len(rows)), context.config.seed)
    features = features_of(training, training.sets.labeled, rows)
    origin = (
        f"{len(np.unique(fold_of))} linear layers on the features of the last model predicted the labels of"
        f" {len(rows):,} of {len(images):,} labelled images out of fold."
    )
    if training.cache is None:
        origin += (
            " The network itself has seen the labels, so labels that it has learnt by heart are not found."
            " `noisystudent run --folds 5` on the same images predicts them without that."
        )
    return Unseen(
        images, rows, out_of_fold(features, labels, fold_of, len(context.dataset.classes)), labels, origin
    )


def out_of_fold(
    features: NDArray[np.float32], labels: NDArray[np.int64], fold_of: NDArray[np.int64], num_classes: int
) -> NDArray[np.float32]:
    """(n, K) probabilities by linear layers, each of which is trained without one fold.

    The weight decay is the one with the smallest negative log-likelihood out of fold.

    Args:
        features: (n, F) features.
        labels: (n,) labels.
        fold_of: (n,) number of the fold of each image.
        num_classes: K. A class that a fold lacks has the probability 0 there.
    """
    scaled = (features - features.mean(axis=0)) / max(float(features.std()), 1e-12)
    candidates = []
    for penalty in _PENALTIES:
        probs = np.zeros((len(labels), num_classes), np.float32)
        for fold in np.unique(fold_of):
            unseen = fold_of == fold
            known = np.unique(labels[~unseen])
            if len(known) == 1:  # nothing to tell apart
                probs[unseen, known[0]] = 1
                continue
            model = LogisticRegression(C=penalty / features.shape[1], max_iter=500)
            model.fit(scaled[~unseen], labels[~unseen])
            probs[np.ix_(unseen, known)] = model.predict_proba(scaled[unseen])
        candidates.append(probs)
    return min(candidates, key=lambda probs: classification.nll(probs, labels))
