"""Reasons for a missing gain, and warnings about a gain, each as a text with the numbers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from noisystudent.metrics import classification
from noisystudent.metrics.classification import Floats, Ints
from noisystudent.metrics.precision import Precision

# Share of the pool that is kept. If less is kept, the student is mostly trained on the labelled images again.
LOW_COVERAGE = 0.1

# Balancing repeats the images of a small class up to the quota. With fewer than ten distinct images the
# student memorises these images instead of the class.
FEW_KEPT = 10

# A class with fewer test images can have no predictions by chance (0.7^10 = 3 % at an accuracy of 30 %).
LOST_MIN_IMAGES = 10

# Gap between the teacher's mean confidence and its accuracy. Above it a confidence threshold of t no longer
# selects pseudo-labels that are right with a probability of about t.
MISCALIBRATED = 0.1

# A student that differs from its teacher on fewer images than this share of the teacher's errors can correct
# at most this share of them.
COPY_SHARE = 0.1

# Accuracy of the teacher below which most of its pseudo-labels are wrong.
WEAK_TEACHER = 0.5

# Share of right pseudo-labels. The gains reported for the method were reached with less label noise.
LOW_PSEUDO_ACCURACY = 0.8

# Pool images for each label. Benchmarks on which the method helps have ten or more; below three little gain
# can be expected.
SMALL_POOL = 3.0

# Factor by which more pool images than labelled ones are junk. A pool like val has about as many.
MORE_JUNK = 2.0

_FEWER_WRONG = (
    "keep fewer images (increase selection.threshold or strength, or decrease top_fraction), or give more "
    "labels"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """Facts about a run that the reasons need in addition to the predictions.

    Attributes:
        test: name of the evaluated set; `val` only if there is no test set.
        classes: class names, in the order of the columns of the probabilities.
        num_labeled: number of labelled training images.
        pool_size: number of unlabelled images that the teacher labelled.
        kept: number of distinct pool images kept for each class.
        pseudo_accuracy: share of the kept pseudo-labels that is right; None if the true labels are unknown.
        expected: estimate of that share from labelled images, used if the true labels are unknown; None if
            there is none.
        by_threshold: the same share for other thresholds, in words; "" if it is not known.
        adaptive: True: the selection has the mode adaptive, whose limits follow `selection.strength`.
        selects: False if the student learns from all pool images, or does not learn from stored labels.
        teachers: number of first teachers; of several ones the average is compared.
        junk: number of pool images that are marked as junk, and of those of them that were kept.
        junk_rejection: share of labelled images that would be marked.
        probe: which of the compared models is the linear probe: its role, or teacher; None: there is none.
    """

    test: Literal["test", "val"]
    classes: tuple[str, ...]
    num_labeled: int
    pool_size: int
    kept: tuple[int, ...]
    pseudo_accuracy: float | None = None
    expected: Precision | None = None
    by_threshold: str = ""
    adaptive: bool = False
    selects: bool = True
    teachers: int = 1
    junk: tuple[int, int] = (0, 0)
    junk_rejection: float = 0.0
    probe: str | None = None

    @property
    def keep_more(self) -> str:
        """What keeps more images."""
        return f"decrease {self.limit}{'' if self.adaptive else ', or take selection.mode adaptive'}"

    @property
    def limit(self) -> str:
        """The field that says how confident a label must be."""
        return "selection.strength" if self.adaptive else "selection.threshold"

    @property
    def more_of_them(self) -> str:
        """What gives more labels of some classes."""
        return f"{'' if self.adaptive else 'take selection.mode adaptive, or '}give more labels of them"


def selection_warnings(kept: int, pool_size: int, expected: Precision | None) -> list[str]:
    """Why a selection may not help a student, known before the student is trained.

    Args:
        kept: number of distinct pool images that were selected.
        pool_size: number of pool images.
        expected: the expected share of right labels; None if there is no estimate.
    """
    warnings = []
    if kept < LOW_COVERAGE * pool_size:
        warnings.append(
            f"only {kept / pool_size:.1%} of the pool is kept, so the student is trained mostly on the given"
            " labels again; decrease selection.threshold or strength, or take selection.mode adaptive"
        )
    if expected is not None and expected.interval[1] < LOW_PSEUDO_ACCURACY:
        warnings.append(
            f"fewer than {LOW_PSEUDO_ACCURACY:.0%} of the kept labels are expected to be right, and gains are"
            f" reported with fewer wrong labels; {_FEWER_WRONG}"
        )
    return warnings


def find(student: Floats, teacher: Floats, labels: Ints, facts: RunFacts, bins: int) -> list[str]:
    """All reasons that apply, each with what to change, the likeliest first.

    Wrong pseudo-labels come first: a student learns them. Then what leaves the pool unused, and then what
    limits any student.

    Args:
        student: (N, K) probabilities of the student.
        teacher: (N, K) probabilities of the teacher.
        labels: (N,) labels of the same images.
        facts: facts about the pool and the selection.
        bins: number of bins of the ECE.
    """
    candidates = [
        _pseudo_accuracy(facts),
        _calibration(teacher, labels, bins, facts),
        _junk(facts),
        _no_images(facts),
        _few_images(facts),
        _lost(student, teacher, labels, facts),
        _coverage(facts),
        _copy(student, teacher, labels, facts),
        _weak_teacher(teacher, labels, facts),
        _small_pool(facts),
        _val_only(facts),
    ]
    return [reason for reason in candidates if reason is not None]


def _val_only(facts: RunFacts) -> str | None:
    if facts.test != "val":
        return None
    return (
        "there is no test set: the accuracies were measured on val, which was also used for decisions during "
        "the run, so they may be too high; give a test set"
    )


def _small_pool(facts: RunFacts) -> str | None:
    ratio = facts.pool_size / max(facts.num_labeled, 1)
    if ratio >= SMALL_POOL:
        return None
    return (
        f"the pool is small: {facts.pool_size:,} unlabelled images, {ratio:.1f} for each of the "
        f"{facts.num_labeled:,} labelled images; with fewer than {SMALL_POOL:g} each, expect little gain; "
        "give more unlabelled images"
    )


def _coverage(facts: RunFacts) -> str | None:
    kept = sum(facts.kept)
    share = kept / max(facts.pool_size, 1)
    if share >= LOW_COVERAGE:
        return None
    count = f"{kept:,} of {facts.pool_size:,} images ({share:.1%})"
    return f"little of the pool was used: the selection kept {count}; {facts.keep_more}"


def _no_images(facts: RunFacts) -> str | None:
    rows = [row for row, kept in enumerate(facts.kept) if kept == 0]
    if not rows:
        return None
    count = f"{len(rows)} of {len(facts.kept)} classes"
    return f"the selection kept no pool image of {count}: {_names(rows, facts)}; {facts.more_of_them}"


def _few_images(facts: RunFacts) -> str | None:
    rows = [row for row, kept in enumerate(facts.kept) if 0 < kept < FEW_KEPT]
    if not rows:
        return None
    return (
        f"the selection kept fewer than {FEW_KEPT} distinct pool images of {len(rows)} of {len(facts.kept)} "
        f"classes: {_names(rows, facts)}; {facts.more_of_them}"
    )


def _pseudo_accuracy(facts: RunFacts) -> str | None:
    accuracy, expected = facts.pseudo_accuracy, facts.expected
    if accuracy is None and expected is not None and expected.interval[1] < LOW_PSEUDO_ACCURACY:
        others = f"; by confidence: {facts.by_threshold}" if facts.by_threshold else ""
        return f"many pseudo-labels are probably wrong: {expected.sentence()}{others}; {_FEWER_WRONG}"
    if accuracy is None or accuracy >= LOW_PSEUDO_ACCURACY:
        return None
    share = f"only {accuracy:.1%} of the kept pseudo-labels are right"
    return f"many pseudo-labels are wrong: {share}; {_FEWER_WRONG}"


def _junk(facts: RunFacts) -> str | None:
    marked, kept = facts.junk
    share = marked / max(facts.pool_size, 1)
    if not kept or share < MORE_JUNK * facts.junk_rejection:
        return None
    return (
        f"many pool images are unlike the labelled ones: {share:.1%} are marked as junk, of labelled images"
        f" {facts.junk_rejection:.0%} would be, and the selection kept {kept:,} of them; see them in the"
        " report, and leave them out with selection.junk drop"
    )


def _weak_teacher(teacher: Floats, labels: Ints, facts: RunFacts) -> str | None:
    top1 = classification.top_k(teacher, labels, 1)
    if top1 >= WEAK_TEACHER:
        return None
    return (
        f"the teacher is weak: it predicts only {top1:.1%} of the {facts.test} images correctly; train it "
        "longer, start from published weights (model.pretrained), or give more labels"
    )


def _calibration(teacher: Floats, labels: Ints, bins: int, facts: RunFacts) -> str | None:
    """Reason that confidence and accuracy of the teacher differ, by which it selects images.

    The condition uses the difference of the means. ECE is never below it, but with few images ECE can be
    large by chance.
    """
    confidence, accuracy = float(teacher.max(axis=1).mean()), classification.top_k(teacher, labels, 1)
    if not facts.selects or abs(confidence - accuracy) <= MISCALIBRATED:
        return None
    numbers = (
        f"mean confidence {confidence:.1%}, accuracy {accuracy:.1%}, "
        f"ECE {classification.ece(teacher, labels, bins):.3f} on {facts.test}"
    )
    if confidence > accuracy:
        return (
            f"the teacher is over-confident, so a threshold keeps too many wrong pseudo-labels: {numbers}; "
            f"increase {facts.limit}, or train the teacher for fewer steps"
        )
    return (
        f"the teacher is under-confident, so a threshold rejects too many right pseudo-labels: {numbers}; "
        f"{facts.keep_more}"
    )


def _copy(student: Floats, teacher: Floats, labels: Ints, facts: RunFacts) -> str | None:
    agreement = float((student.argmax(axis=1) == teacher.argmax(axis=1)).mean())
    errors = 1 - classification.top_k(teacher, labels, 1)
    if 1 - agreement >= COPY_SHARE * errors:
        return None
    return (
        f"the student predicts nearly the same as the teacher: they agree on {agreement:.1%} of the "
        f"{facts.test} images, although the teacher is wrong on {errors:.1%}; train the student longer or "
        "with more noise"
    )


def _lost(student: Floats, teacher: Floats, labels: Ints, facts: RunFacts) -> str | None:
    classes = student.shape[1]
    images = np.bincount(labels, minlength=classes)
    predicted = np.bincount(student.argmax(axis=1), minlength=classes)
    rows = [int(row) for row in np.flatnonzero((images >= LOST_MIN_IMAGES) & (predicted == 0))]
    if not rows:
        return None
    by_teacher = int((np.bincount(teacher.argmax(axis=1), minlength=classes)[rows] > 0).sum())
    return (
        f"the student never predicts {len(rows)} of {classes} classes; the teacher predicts {by_teacher} of "
        f"them: {_names(rows, facts)}; {facts.more_of_them}"
    )


def _names(rows: list[int], facts: RunFacts) -> str:
    return listed([facts.classes[row] for row in rows])


def listed(names: Sequence[str]) -> str:
    """At most five of the names, and the number of further ones."""
    text = ", ".join(names[:5])
    return f"{text} and {len(names) - 5} more" if len(names) > 5 else text
