"""Groups of images that are worth a look, each with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from noisystudent.data.imageset import ImageSet
from noisystudent.data.prepare import Dataset
from noisystudent.metrics.label_quality import self_confidence, suspected
from noisystudent.review.choices import Scored, disagreements, doubtful_and_frequent, next_to_label
from noisystudent.review.labeled import Unseen
from noisystudent.review.pool import PoolImages


@dataclass(frozen=True, slots=True)
class Candidate:
    """One image of a group.

    Attributes:
        images: the set of the image.
        row: its row there.
        label: class name of the given label; empty for an image of the pool.
        predicted: class name that is predicted for it.
        confidence: probability of this class.
        score: what the group is ordered by.
        detail: what else is known, in a few words.
    """

    images: ImageSet
    row: int
    label: str
    predicted: str
    confidence: float
    score: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Images with one reason, the first ones first.

    Attributes:
        reason: value of the column `reason`.
        title: heading on the page.
        note: how the images were chosen, for the page.
        images: the images.
    """

    reason: str
    title: str
    note: str
    images: tuple[Candidate, ...]


def suspected_labels(unseen: Sequence[Unseen], classes: Sequence[str], count: int) -> Group:
    """Return the labelled images whose labels seem wrong, those with the least probable labels first.

    Args:
        unseen: predictions for labelled images, each set with thresholds of its own.
        classes: class names.
        count: images at most.
    """
    candidates = []
    for one in unseen:
        better, confidence = suspected(one.probs, one.labels), self_confidence(one.probs, one.labels)
        for at in np.flatnonzero(better >= 0).tolist():
            given, other = classes[one.labels[at]], classes[better[at]]
            probability, own = float(one.probs[at, better[at]]), float(confidence[at])
            detail = f"{given} has the probability {own:.2f}"
            candidates.append(
                Candidate(one.images, int(one.rows[at]), given, other, probability, 1 - own, detail)
            )
    candidates.sort(key=lambda each: -each.score)
    return Group(
        "suspected_label",
        "Labels that may be wrong",
        "A model that has not seen the label is confident of another class, and not of the given one. The"
        " least probable labels come first (confident learning, arXiv 1911.00068).",
        tuple(candidates[:count]),
    )


def pool_groups(pool: PoolImages, dataset: Dataset, model: str, count: int, seed: int) -> list[Group]:
    """Return the groups of pool images. An image is in the first group that has it.

    Args:
        pool: predictions and features of pool images.
        dataset: its pool and classes are used.
        model: name of the last model.
        count: images of a group at most.
        seed: seed of the clusters.
    """
    groups, taken = [], np.zeros(len(pool.rows), np.bool_)
    for reason, title, note, (positions, scores) in _ranked(pool, model, count, seed):
        free = np.flatnonzero(~taken[positions])[:count]
        taken[positions[free]] = True
        candidates = (
            _of_pool(pool, dataset, at, score)
            for at, score in zip(positions[free].tolist(), scores[free].tolist(), strict=True)
        )
        groups.append(Group(reason, title, note, tuple(candidates)))
    return groups


def _ranked(pool: PoolImages, model: str, count: int, seed: int) -> Iterator[tuple[str, str, str, Scored]]:
    """Yield reason, title, note and images of each group of pool images, the most useful group first."""
    yield (
        "next_to_label",
        "Next to label",
        f"{model} hesitates between two classes, and the images differ from each other: of the most"
        " uncertain ones, one of each cluster of features (arXiv 1901.05954).",
        next_to_label(pool.probs, pool.features, count, seed),
    )
    if pool.teachers is not None:
        label, confidence = pool.probs.argmax(axis=1), pool.probs.max(axis=1).astype(np.float64)
        by = pool.teachers
        yield (
            "disagreement",
            "Disagreement",
            f"The first teachers and {model} label the image differently, or the teachers do among"
            " themselves. Images of which both are sure come first.",
            disagreements(label, confidence, by.label, by.confidence, by.agreement),
        )
    yield (
        "doubtful_and_frequent",
        "Doubtful and frequent",
        f"{model} is not sure, and the pool has many images like this one, so a label tells about all.",
        doubtful_and_frequent(pool.probs, pool.features),
    )


def _of_pool(pool: PoolImages, dataset: Dataset, at: int, score: float) -> Candidate:
    """The pool image at a position."""
    best = int(pool.probs[at].argmax())
    predicted, confidence = dataset.classes[best], float(pool.probs[at, best])
    detail = _teachers(pool, dataset.classes, at)
    return Candidate(dataset.pool, int(pool.rows[at]), "", predicted, confidence, score, detail)


def _teachers(pool: PoolImages, classes: Sequence[str], at: int) -> str:
    """What the first teachers predict for an image."""
    if pool.teachers is None:
        return ""
    by = pool.teachers
    share = f", {by.agreement[at]:.0%} of them" if by.agreement[at] < 1 else ""
    return f"teachers: {classes[by.label[at]]} {by.confidence[at]:.2f}{share}"
