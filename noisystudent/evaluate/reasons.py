"""Why there is no gain, or what to know about one: each reason in words, with the number that makes it so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from noisystudent.evaluate import metrics

# The pool is there to be used: with nine tenths thrown away the student mostly sees its labels again.
LOW_COVERAGE = 0.1

# Balancing copies a small class up to the quota: below ten distinct images it teaches them, not the class.
FEW_KEPT = 10

# A class with fewer test images can go unpredicted by bad luck alone (0.7^10 = 3 % at an accuracy of 30 %).
LOST_MIN_IMAGES = 10

# Gap between what the teacher claims and what is true above which a threshold no longer means itself.
MISCALIBRATED = 0.1

# A student that differs from its teacher on fewer images than this share of its errors cannot mend more.
COPY_SHARE = 0.1

# Below one half the typical thing the teacher says is wrong.
WEAK_TEACHER = 0.5

# One pseudo-label in five wrong is more label noise than the gains reported for the method were reached with.
LOW_PSEUDO_ACCURACY = 0.8

# The benchmarks the method helps on have ten and more pool images a label; below three, expect little.
SMALL_POOL = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a run knows beside the predictions.

    Attributes:
        test: the set judged on; `val` only where there is no test set.
        classes: names, in the order of the columns of the probabilities.
        num_labeled: labeled training images.
        pool_size: unlabeled images the teacher labeled.
        kept: distinct pool images kept for each class.
        pseudo_accuracy: share of the kept pseudo-labels that is right, where the truth is known.
    """

    test: Literal["test", "val"]
    classes: tuple[str, ...]
    num_labeled: int
    pool_size: int
    kept: tuple[int, ...]
    pseudo_accuracy: float | None = None


def find(
    student: metrics.Floats, teacher: metrics.Floats, labels: metrics.Ints, context: Context, bins: int
) -> list[str]:
    """Every reason that applies, from the pool to the student.

    Args:
        student: (N, K) probabilities of the student.
        teacher: (N, K) probabilities of the teacher.
        labels: (N,) of the same images.
        context: what the run knows of pool and selection.
        bins: of the ECE.
    """
    found = [
        _val_only(context),
        _small_pool(context),
        _coverage(context),
        _no_images(context),
        _few_images(context),
        _pseudo_accuracy(context),
        _weak_teacher(teacher, labels, context),
        _calibration(teacher, labels, bins, context),
        _copy(student, teacher, labels, context),
        _lost(student, teacher, labels, context),
    ]
    return [reason for reason in found if reason is not None]


def _val_only(context: Context) -> str | None:
    if context.test != "val":
        return None
    return (
        "there is no test set: the numbers are from val, where choices of the run were made, and may flatter"
    )


def _small_pool(context: Context) -> str | None:
    ratio = context.pool_size / max(context.num_labeled, 1)
    if ratio >= SMALL_POOL:
        return None
    labels = f"{ratio:.1f} for each of the {context.num_labeled:,} labels"
    return f"the pool is small: {context.pool_size:,} images, {labels}"


def _coverage(context: Context) -> str | None:
    kept = sum(context.kept)
    share = kept / max(context.pool_size, 1)
    if share >= LOW_COVERAGE:
        return None
    return f"little of the pool was used: {kept:,} of {context.pool_size:,} images ({share:.1%})"


def _no_images(context: Context) -> str | None:
    rows = [row for row, kept in enumerate(context.kept) if kept == 0]
    if not rows:
        return None
    return f"{len(rows)} of {len(context.kept)} classes have no kept pool image: {_names(rows, context)}"


def _few_images(context: Context) -> str | None:
    rows = [row for row, kept in enumerate(context.kept) if 0 < kept < FEW_KEPT]
    if not rows:
        return None
    return (
        f"{len(rows)} of {len(context.kept)} classes have fewer than {FEW_KEPT} distinct kept pool images: "
        f"{_names(rows, context)}"
    )


def _pseudo_accuracy(context: Context) -> str | None:
    accuracy = context.pseudo_accuracy
    if accuracy is None or accuracy >= LOW_PSEUDO_ACCURACY:
        return None
    return f"the student learns from wrong labels: {accuracy:.1%} of the kept pseudo-labels are right"


def _weak_teacher(teacher: metrics.Floats, labels: metrics.Ints, context: Context) -> str | None:
    top1 = metrics.top_k(teacher, labels, 1)
    if top1 >= WEAK_TEACHER:
        return None
    return f"the teacher is weak: {top1:.1%} of the {context.test} images right"


def _calibration(teacher: metrics.Floats, labels: metrics.Ints, bins: int, context: Context) -> str | None:
    """The signed gap decides: ECE is never below it, but on few images is large by chance alone."""
    confidence, accuracy = float(teacher.max(axis=1).mean()), metrics.top_k(teacher, labels, 1)
    if abs(confidence - accuracy) <= MISCALIBRATED:
        return None
    numbers = (
        f"mean confidence {confidence:.1%}, accuracy {accuracy:.1%}, "
        f"ECE {metrics.ece(teacher, labels, bins):.3f} on {context.test}"
    )
    if confidence > accuracy:
        return f"the teacher is over-confident, so the threshold lets wrong labels through: {numbers}"
    return f"the teacher is under-confident, so the threshold turns right labels away: {numbers}"


def _copy(
    student: metrics.Floats, teacher: metrics.Floats, labels: metrics.Ints, context: Context
) -> str | None:
    agreement = float((student.argmax(axis=1) == teacher.argmax(axis=1)).mean())
    errors = 1 - metrics.top_k(teacher, labels, 1)
    if 1 - agreement >= COPY_SHARE * errors:
        return None
    return (
        f"the student copies the teacher: they agree on {agreement:.1%} of the {context.test} images, "
        f"of which the teacher has {errors:.1%} wrong"
    )


def _lost(
    student: metrics.Floats, teacher: metrics.Floats, labels: metrics.Ints, context: Context
) -> str | None:
    classes = student.shape[1]
    images = np.bincount(labels, minlength=classes)
    said = np.bincount(student.argmax(axis=1), minlength=classes)
    rows = [int(row) for row in np.flatnonzero((images >= LOST_MIN_IMAGES) & (said == 0))]
    if not rows:
        return None
    known = int((np.bincount(teacher.argmax(axis=1), minlength=classes)[rows] > 0).sum())
    return (
        f"the student never predicts {len(rows)} of {classes} classes, the teacher predicts {known} of them: "
        f"{_names(rows, context)}"
    )


def _names(rows: list[int], context: Context) -> str:
    """At most five names, and how many more there are."""
    names = ", ".join(context.classes[row] for row in rows[:5])
    return f"{names} and {len(rows) - 5} more" if len(rows) > 5 else names
