"""Checks that stop a run before a model that went wrong labels images: chance level, collapse, confidence."""

from __future__ import annotations

import numpy as np
from scipy import stats

from noisystudent.metrics import classification
from noisystudent.metrics.classification import Floats, Ints
from noisystudent.metrics.power import LEAST_IMAGES

# Significance level of the test against chance: a teacher that guesses passes in one of a hundred runs.
CHANCE_LEVEL = 0.01

# A model has collapsed if its predictions are spread over less than this share of the classes in the labels.
# In self-training, classes with few predictions get fewer pseudo-labels and so even fewer predictions.
COLLAPSED_SHARE = 0.5

# Confidences that differ by less than this share of the largest are equal up to the rounding of float32.
ROUNDING = 1e-6


def fault(labels: Ints, probs: Floats, *, is_teacher: bool) -> str | None:
    """What is wrong with a model and what may help, in one sentence; None if it passes.

    With fewer than `LEAST_IMAGES` labels the accuracy is no fault: a good model can be at chance on them.

    Args:
        labels: (N,) labels of val.
        probs: (N, K) probabilities that the model predicts for val.
        is_teacher: the model will label images. It must be better than chance with statistical significance,
            and its confidences must rank images. Any other model must not be worse than a constant guess.
    """
    chance = at_chance(labels, probs, is_teacher=is_teacher) if len(labels) >= LEAST_IMAGES else None
    if is_teacher:
        if chance is not None:
            return f"{chance}; the run stops before it labels anything with this model"
        return collapsed(probs, labels) or same_confidence(probs, labels)
    return collapsed(probs, labels) or chance


def at_chance(labels: Ints, probs: Floats, *, is_teacher: bool, images: str = "val images") -> str | None:
    """What is wrong with a model whose accuracy is that of a guess, otherwise None.

    Args:
        labels, probs, is_teacher: see `fault`; the labels may be of other images that the model has not seen.
        images: name of these images in the message.
    """
    if not is_teacher:
        return worse_than_chance(probs, labels)
    passed, sentence = teacher_above_chance(labels, probs, images)
    return None if passed else sentence


def teacher_above_chance(labels: Ints, probs: Floats, images: str = "val images") -> tuple[bool, str]:
    """Test if the accuracy on val is above that of always predicting the most common class of val.

    It is a one-sided exact binomial test at 1 %. The accuracy to beat is the share of the most common class
    in `labels` (N,). It is never below 1/K, and on an unbalanced val set a teacher that always predicts one
    class does not pass either.

    Returns:
        True if the teacher passes, and a sentence with the numbers.
    """
    right, total = int(classification.correct(probs, labels).sum()), len(labels)
    chance = float(np.bincount(labels).max() / total)
    needed = int(stats.binom.isf(CHANCE_LEVEL, total, chance)) + 1
    passed = bool(stats.binomtest(right, total, chance, alternative="greater").pvalue <= CHANCE_LEVEL)
    text = _numbers(probs, labels, images)
    if passed:
        return True, text
    if needed > total:
        reason = f"the {images} are too few for the test, whatever the model predicts"
        return False, f"{text}; {reason}: give more of them, and of more than one class"
    reason = f"to be above chance, {needed:,} correct predictions are needed"
    return False, f"{text}; {reason}: train it longer or with another train.lr, or check the labels"


def worse_than_chance(probs: Floats, labels: Ints) -> str | None:
    """A message if always predicting the most common class of val is more accurate, otherwise None."""
    if classification.correct(probs, labels).sum() >= np.bincount(labels).max():
        return None
    return (
        f"{_numbers(probs, labels, 'val images')}; it is worse than chance, so its training went wrong:"
        " decrease train.lr, or select other pseudo-labels"
    )


def equal_confidences(lowest: float, highest: float) -> bool:
    """True if confidences between these two are equal up to rounding, so that they rank nothing."""
    return highest - lowest <= ROUNDING * highest


def same_confidence(probs: Floats, labels: Ints) -> str | None:
    """A message if all predictions have the same confidence and some are wrong, otherwise None.

    Equal confidences of a model without errors are no fault: there is nothing to tell apart.
    """
    confidence, wrong = probs.max(axis=1), int((~classification.correct(probs, labels)).sum())
    if wrong == 0 or not equal_confidences(float(confidence.min()), float(confidence.max())):
        return None
    return (
        f"the confidence of all {len(labels):,} val images is {confidence[0]:.6f}, although {wrong:,} "
        "predictions are wrong, so it cannot select pseudo-labels; train the model with a lower train.lr"
    )


def effective_classes(predicted: Ints, num_classes: int) -> float:
    """Effective number of classes in `predicted` (N,): exp(entropy) of the class frequencies.

    C equally frequent classes give C; unequal frequencies give less.
    """
    return float(np.exp(stats.entropy(np.bincount(predicted, minlength=num_classes))))


def collapsed(probs: Floats, labels: Ints) -> str | None:
    """A message if the predictions have less than half the `effective_classes` of the labels, otherwise None.

    Both are computed on the same images. So long-tailed labels, or a val set with fewer images than classes,
    do not look like a collapse.
    """
    classification.check(probs, labels)
    classes = probs.shape[1]
    predicted = effective_classes(probs.argmax(axis=1), classes)
    expected = effective_classes(labels, classes)
    if predicted >= COLLAPSED_SHARE * expected:
        return None
    return (
        "the model has collapsed onto a few classes: its predictions are as varied as "
        f"{predicted:.1f} equally frequent classes, the labels as {expected:.1f}"
    )


def _numbers(probs: Floats, labels: Ints, images: str) -> str:
    """Accuracy on these images, and that of the constant guess."""
    right, total = int(classification.correct(probs, labels).sum()), len(labels)
    return (
        f"the model predicts {right:,} of {total:,} {images} correctly ({right / total:.1%}), "
        f"a constant guess {np.bincount(labels).max() / total:.1%}"
    )
