"""Guard rails of the loop: a teacher at chance level, a collapsed student, found before they cost hours."""

from __future__ import annotations

import numpy as np
from scipy import stats

from noisystudent.evaluate import metrics

# A run stops on this test, so it must almost never pass a teacher that guesses; one in a hundred may.
CHANCE_LEVEL = 0.01

# A healthy classifier predicts about as many classes as there are; a feedback loop starves the small ones.
COLLAPSED_SHARE = 0.5


def teacher_above_chance(labels: metrics.Ints, probs: metrics.Floats) -> tuple[bool, str]:
    """Whether val accuracy beats always naming the most common class of val, and a sentence with the numbers.

    One-sided exact binomial test at 1 %. The rival is the majority class's share of `labels` (N,), which is
    never below 1/K, so an unbalanced val set does not make a constant teacher look able.
    """
    right, total = int(metrics.correct(probs, labels).sum()), len(labels)
    chance = float(np.bincount(labels).max() / total)
    needed = int(stats.binom.isf(CHANCE_LEVEL, total, chance)) + 1
    passed = bool(stats.binomtest(right, total, chance, alternative="greater").pvalue <= CHANCE_LEVEL)
    text = (
        f"the teacher has {right:,} of {total:,} val images right ({right / total:.1%}), a guess {chance:.1%}"
    )
    if passed:
        return True, text
    if needed > total:
        return False, f"{text}; val cannot show more than that: give it more images, of more than one class"
    return False, f"{text}; above chance begins at {needed:,} images: train it longer, or check the labels"


def effective_classes(predicted: metrics.Ints, num_classes: int) -> float:
    """exp(entropy) of the frequencies in `predicted` (N,): how many equally frequent classes they equal."""
    return float(np.exp(stats.entropy(np.bincount(predicted, minlength=num_classes))))


def collapsed(probs: metrics.Floats, labels: metrics.Ints) -> str | None:
    """A sentence when the predicted classes amount to less than half as many as the labels, else None.

    Both sides are `effective_classes` of the same images, so long-tailed labels and a val set smaller than
    the number of classes are judged by what they can show, not by K.
    """
    metrics.check(probs, labels)
    classes = probs.shape[1]
    found = effective_classes(probs.argmax(axis=1), classes)
    expected = effective_classes(labels, classes)
    if found >= COLLAPSED_SHARE * expected:
        return None
    return (
        f"the model has collapsed onto a few classes: its predictions amount to {found:.1f} equally frequent "
        f"classes, the labels to {expected:.1f}"
    )
