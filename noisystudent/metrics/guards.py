"""Checks that stop a run early: a teacher at chance level, or a model that predicts only a few classes."""

from __future__ import annotations

import numpy as np
from scipy import stats

from noisystudent.metrics import classification
from noisystudent.metrics.classification import Floats, Ints

# Significance level of the test against chance: a teacher that guesses passes in one of a hundred runs.
CHANCE_LEVEL = 0.01

# A model has collapsed if its predictions are spread over less than this share of the classes in the labels.
# In self-training, classes with few predictions get fewer pseudo-labels and so even fewer predictions.
COLLAPSED_SHARE = 0.5


def teacher_above_chance(labels: Ints, probs: Floats) -> tuple[bool, str]:
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
    text = (
        f"the teacher predicts {right:,} of {total:,} val images correctly ({right / total:.1%}), "
        f"a constant guess {chance:.1%}"
    )
    if passed:
        return True, text
    if needed > total:
        reason = "val is too small for the test, whatever the teacher predicts"
        return False, f"{text}; {reason}: use more val images, of more than one class"
    reason = f"to be above chance, {needed:,} correct predictions are needed"
    return False, f"{text}; {reason}: train the teacher longer, or check the labels"


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
