"""Which images are worth a look: functions from predictions and features to positions, the best first."""

from __future__ import annotations

import warnings

import faiss
import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

Positions = NDArray[np.int64]
Scored = tuple[Positions, NDArray[np.float64]]
"""(n,) positions, the best first, and (n,) their scores."""

_FACTOR = 10  # candidates for each image that is chosen, as in arXiv 1901.05954
_NEIGHBOURS = 10


def next_to_label(probs: NDArray[np.float32], features: NDArray[np.float32], count: int, seed: int) -> Scored:
    """Images to label next: uncertain ones, from different regions (arXiv 1901.05954).

    The uncertainty of an image is 1 less the margin between its two largest probabilities. Ten times as many
    of the most uncertain images are clustered by their features, weighted by the uncertainty; of each cluster
    the image next to the centre is chosen.

    Args:
        probs: (N, K) probabilities, K at least 2.
        features: (N, F) features of length 1.
        count: number of images.
        seed: seed of the clusters.
    """
    second, first = np.partition(probs.astype(np.float64), -2, axis=1)[:, -2:].T
    uncertainty = 1 - (first - second)
    candidates = _best(uncertainty, _FACTOR * count)
    if len(candidates) > count:
        weights = np.maximum(uncertainty[candidates], 1e-6)
        clusters = KMeans(count, n_init=1, random_state=seed)
        with warnings.catch_warnings():
            # Copies of an image fill no clusters of their own, and need no labels of their own.
            warnings.simplefilter("ignore", ConvergenceWarning)
            assigned = clusters.fit_predict(features[candidates], sample_weight=weights)
        offsets = features[candidates] - clusters.cluster_centers_[assigned]
        distances = np.linalg.norm(offsets, axis=1)
        order = np.lexsort((distances, assigned))  # the nearest of each cluster comes first
        candidates = np.sort(candidates[order[np.unique(assigned[order], return_index=True)[1]]])
    chosen = candidates[_best(uncertainty[candidates], count)]
    return chosen, uncertainty[chosen]


def disagreements(
    labels: NDArray[np.int64],
    confidence: NDArray[np.float64],
    others: NDArray[np.int64],
    other_confidence: NDArray[np.float64],
    agreement: NDArray[np.float64],
) -> Scored:
    """Images that two sides label differently, or on which one of them is divided.

    The score is the smaller confidence of the two if they differ, otherwise the share of the divided side
    that does not agree; so images of which both are sure come first.

    Args:
        labels, confidence: (N,) labels and confidences of one side.
        others, other_confidence: (N,) those of the other side.
        agreement: (N,) share of the other side that agrees with its label.
    """
    differ = labels != others
    score = np.maximum(np.where(differ, np.minimum(confidence, other_confidence), 0), 1 - agreement)
    order = _best(score, len(score))
    order = order[score[order] > 0]
    return order, score[order]


def doubtful_and_frequent(probs: NDArray[np.float32], features: NDArray[np.float32]) -> Scored:
    """Images of which the model is not sure, and which have many like them: one label tells about all.

    The score is (1 - confidence) times the mean cosine similarity with the ten nearest other images
    (information density, Settles and Craven 2008).

    Args:
        probs: (N, K) probabilities.
        features: (N, F) features of length 1.
    """
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features)
    similarity, _ = index.search(features, min(_NEIGHBOURS + 1, len(features)))
    # The first of them is the image itself, unless it has copies, which are as similar.
    density = similarity[:, 1:].mean(axis=1) if len(features) > 1 else np.ones(len(features))
    score = (1 - probs.max(axis=1).astype(np.float64)) * np.maximum(density, 0)
    order = _best(score, len(score))
    return order, score[order]


def _best(scores: NDArray[np.float64], count: int) -> Positions:
    """Positions of the largest scores, the largest first; equal ones in their order."""
    return np.argsort(-scores, kind="stable")[:count]
