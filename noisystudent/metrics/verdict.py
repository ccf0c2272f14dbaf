"""Paired statistics between models on the same images, and the verdict of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from noisystudent.config import EvaluateConfig
from noisystudent.errors import InputError
from noisystudent.metrics import classification, reasons
from noisystudent.metrics.classification import Floats, Ints
from noisystudent.metrics.reasons import RunFacts
from noisystudent.run.rundir import CONTROLS
from noisystudent.runtime import generator

# A set of images is too small if it detects a gain of one percentage point with less than this power.
GAIN_WORTH_FINDING = 0.01
POWER = 0.8

_COMPUTE = CONTROLS["same_compute"]
_RIVALS = {
    "teacher": "the first teacher",
    CONTROLS["same_steps"]: "the control trained only on labels",
    _COMPUTE: "the control of the same compute",
}

# A limit of the intervals, written into every verdict.json.
SCOPE = (
    "The intervals account for the choice of the images, but not for the training seed: "
    "with another seed every accuracy changes, and only several runs can show by how much."
)


class Comparison(TypedDict):
    """Accuracy of one model minus another's on the same n images, its interval and McNemar's p-value.

    `wins` is the number of images on which only the first model is right, `losses` only the second.
    """

    difference: float
    low: float
    high: float
    p_value: float
    wins: int
    losses: int
    n: int


class SeedSummary(NamedTuple):
    """Mean of a paired difference over seeds and its t interval."""

    mean: float
    low: float
    high: float


def compare(
    first: NDArray[np.bool_], second: NDArray[np.bool_], config: EvaluateConfig, seed: int
) -> Comparison:
    """Paired comparison of two models.

    The interval is a percentile bootstrap over images. The difference of an image is -1, 0 or +1, so
    resampling the images equals one multinomial draw of three counts: the same distribution at 1/N of the
    cost. The ends of the interval are rounded outwards to drawn values. The p-value is McNemar's, exact and
    two-sided.

    Args:
        first: (N,) bool, True where the first model is right.
        second: (N,) bool of the second model, for the same images in the same order.
        config: level of the interval and number of resamples.
        seed: seed of the bootstrap.

    Raises:
        InputError: the arrays do not match or are empty.
    """
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise InputError(
            f"hits have shapes {first.shape} and {second.shape}; they must be two arrays (N,) with N >= 1"
        )
    n = first.size
    wins, losses = int((first & ~second).sum()), int((~first & second).sum())
    shares = np.array([losses, n - wins - losses, wins]) / n
    counts = generator(seed, "bootstrap").multinomial(n, shares, size=config.resamples)
    differences = (counts[:, 2] - counts[:, 0]) / n
    tail = (1 - config.level) / 2
    return Comparison(
        difference=(wins - losses) / n,
        low=float(np.quantile(differences, tail, method="lower")),
        high=float(np.quantile(differences, 1 - tail, method="higher")),
        p_value=mcnemar(wins, losses),
        wins=wins,
        losses=losses,
        n=n,
    )


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p-value for wins and losses being equally likely (McNemar 1947); 1 if both are 0."""
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def paired_over_seeds(differences: Sequence[float], level: float) -> SeedSummary:
    """Mean of the differences of several seeds and its Student's t interval.

    In contrast to `compare`, this interval accounts for the training seed.

    Args:
        differences: one difference for each seed.
        level: confidence level of the interval.

    Raises:
        InputError: fewer than two seeds, or a level outside (0, 1).
    """
    if len(differences) < 2:
        raise InputError(f"the number of seeds is {len(differences)}; it must be at least 2")
    if not 0.0 < level < 1.0:
        raise InputError(f"level is {level}; it must be between 0 and 1")
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return SeedSummary(mean, mean - half, mean + half)


def judge(
    student: Floats,
    teacher: Floats,
    control: Floats | None,
    labels: Ints,
    *,
    same_compute: Floats | None = None,
    facts: RunFacts,
    config: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    """The content of verdict.json: the last student compared with the first teacher and with its controls.

    `improved` is True only if both intervals are above 0 and both McNemar p-values below 1 - level: the
    bootstrap interval is too narrow if models disagree on only a few images. Both comparisons must hold, so
    two tests need no correction. Without a control it is None, and no gain is claimed; see `_improved`.

    Args:
        student, teacher: (N, K) probabilities of the last student and of the first teacher.
        control, same_compute: (N, K) probabilities of the controls; None if there is no such control.
        labels: (N,) labels of the evaluated images.
        facts: facts about the run.
        config, seed: interval level, resamples and ECE bins; seed of the bootstrap.

    Returns:
        A dict for JSON: set, n, level, top1 of each model, comparisons (`Comparison` of the student with
        `teacher` and the controls that there are), improved, sentence, reasons and scope.

    Raises:
        InputError: arrays or names that do not match, or settings out of range.
    """
    given = {"student": student, "teacher": teacher, "control": control, _COMPUTE: same_compute}
    models = {name: probs for name, probs in given.items() if probs is not None}
    hits = {name: classification.correct(probs, labels) for name, probs in models.items()}
    _check_columns(list(models.values()), facts)
    rivals = {name: compare(hits["student"], hits[name], config, seed) for name in hits if name != "student"}
    improved = _improved(rivals, config.level)
    top1 = {name: float(hit.mean()) for name, hit in hits.items()}
    return {
        "set": facts.test,
        "n": len(labels),
        "level": config.level,
        "top1": top1,
        "comparisons": rivals,
        "improved": improved,
        "sentence": _sentence(improved, top1["student"], rivals, facts.test, config.level),
        "reasons": reasons.find(student, teacher, labels, facts, config.ece_bins)
        + [text for name, rival in rivals.items() for text in _power(name, rival, config.level)],
        "scope": SCOPE,
    }


def _improved(rivals: dict[str, Comparison], level: float) -> bool | None:
    """True if the student is significantly better than the teacher and a control; None without a control.

    The control of the same steps shows what the pool adds, so it decides. That of the same compute shows
    whether the labels alone would have given as much for the same work. It decides only if it is the only
    one; otherwise `_sentence` says where it disagrees.
    """
    if len(rivals) < 2:
        return None
    return all(above(rival, level) for name, rival in rivals.items() if name != _COMPUTE or len(rivals) == 2)


def above(comparison: Comparison, level: float) -> bool:
    """True if the first model is significantly better than the other."""
    return comparison["low"] > 0 and comparison["p_value"] < 1 - level


def below(comparison: Comparison, level: float) -> bool:
    """True if the first model is significantly worse than the other."""
    return comparison["high"] < 0 and comparison["p_value"] < 1 - level


def _sentence(
    improved: bool | None, top1: float, rivals: dict[str, Comparison], test: str, level: float
) -> str:
    """The main sentence of the verdict, with the differences in percentage points."""
    worse = [_RIVALS[name] for name, rival in rivals.items() if below(rival, level)]
    not_better = [_RIVALS[name] for name, rival in rivals.items() if not above(rival, level)]
    if improved is None:
        opening = "No gain is claimed, because there is no control to compare with"
    elif improved and _RIVALS[_COMPUTE] in not_better:
        # The same steps decide, but with the same work on the labels the user may be as well off.
        verb = "is worse than" if _RIVALS[_COMPUTE] in worse else "is not shown to be better than"
        opening = f"The student improved, but {verb} {_RIVALS[_COMPUTE]}"
    elif improved:
        opening = "The student improved"
    elif worse:
        opening = f"The student is worse than {' and '.join(worse)}"
    else:
        opening = f"No significant gain over {' and '.join(not_better)}"
    differences = " and ".join(
        f"{100 * rival['difference']:+.2f} percentage points compared with {_RIVALS[name]} "
        f"({level:.0%} interval {100 * rival['low']:+.2f} to {100 * rival['high']:+.2f}, "
        f"p = {rival['p_value']:.2g})"
        for name, rival in rivals.items()
    )
    count = rivals["teacher"]["n"]
    return f"{opening}: the student predicts {top1:.2%} of {count:,} {test} images correctly, {differences}."


def _power(name: str, rival: Comparison, level: float) -> list[str]:
    """Warnings that there are too few images, or too few disagreements, to compare the student with `name`.

    The smallest difference detected with 80 % power is (z_level + z_power) * sqrt(disagreeing share / n), the
    normal approximation of McNemar's test (Connor 1987).
    """
    name = "control of the same compute" if name == _COMPUTE else name
    # At least 1: without any observed disagreement the true share of disagreements is still not 0.
    differ, n = max(rival["wins"] + rival["losses"], 1), rival["n"]
    z_sum = float(stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(POWER))
    detectable = z_sum * math.sqrt(differ) / n
    if rival["low"] <= 0 <= rival["high"] and detectable > GAIN_WORTH_FINDING:
        needed = math.ceil(differ / n * (z_sum / GAIN_WORTH_FINDING) ** 2)
        return [
            f"there are too few images to compare student and {name}: {n:,} images detect a difference of "
            f"{100 * detectable:.2f} points with a probability of {POWER:.0%}; the measured difference is "
            f"{100 * rival['difference']:+.2f} points; to detect {100 * GAIN_WORTH_FINDING:g} point, "
            f"about {needed:,} images are needed"
        ]
    if rival["low"] * rival["high"] > 0 and rival["p_value"] >= 1 - level:
        return [
            f"student and {name} differ on only {differ} images (only the student is right on "
            f"{rival['wins']}, only the {name} on {rival['losses']}): the interval excludes 0, but the exact "
            f"test is not significant (p = {rival['p_value']:.2g})"
        ]
    return []


def _check_columns(models: Sequence[Floats], facts: RunFacts) -> None:
    columns = {len(facts.classes), len(facts.kept), *(probs.shape[1] for probs in models)}
    if len(columns) > 1:
        raise InputError(
            f"classes, kept counts and probabilities disagree on the number of classes: {sorted(columns)}"
        )
