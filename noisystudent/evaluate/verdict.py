"""Did it help, and is that luck: paired statistics between models that answered the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from noisystudent.config import EvaluateConfig
from noisystudent.errors import InputError
from noisystudent.evaluate import metrics, reasons
from noisystudent.evaluate.reasons import Context
from noisystudent.runtime import generator

# A gain of one point is worth finding; a test that misses it more than one time in five is too small.
GAIN_WORTH_FINDING = 0.01
POWER = 0.8

_RIVALS = {"teacher": "the first teacher", "control": "the control trained on labels alone"}

# What the intervals do not say; it stands in every verdict.json.
SCOPE = (
    "The intervals cover the draw of the images, not of the training seed: "
    "another seed moves every accuracy by an amount only several runs can show."
)


class Comparison(TypedDict):
    """Accuracy of one model minus another's on the same n images, its interval and McNemar's p-value.

    wins and losses count the images that only the first, only the second has right.
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
    """Paired comparison of two models' hits, both (N,) bool over the same images in the same order.

    The interval is the percentile bootstrap over images. An image's difference is -1, 0 or +1, so resampling
    the images is one multinomial draw of three counts: the same distribution at 1/N of the cost. The ends are
    rounded outwards to values that were drawn. The p-value is McNemar's, exact and two-sided.

    Raises:
        InputError: the arrays do not match or are empty, or `resamples` or `level` is out of range.
    """
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise InputError(f"hits are {first.shape} and {second.shape}; two arrays (N,) with N >= 1 are needed")
    _check_interval(config)
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


def _check_interval(config: EvaluateConfig) -> None:
    """Refuse settings no interval can be made with.

    Raises:
        InputError: names the field, its value and the range.
    """
    if config.resamples < 1:
        raise InputError(f"evaluate.resamples is {config.resamples}; at least 1")
    if not 0.0 < config.level < 1.0:
        raise InputError(f"evaluate.level is {config.level}; it lies between 0 and 1")


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p-value of wins and losses being equally likely (McNemar 1947); 1 without either."""
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def paired_over_seeds(differences: Sequence[float], level: float) -> SeedSummary:
    """Mean and Student's t interval of one difference a seed; this one does cover the training seed.

    Raises:
        InputError: fewer than two seeds, or a level outside (0, 1).
    """
    if len(differences) < 2:
        raise InputError(f"{len(differences)} seeds given; an interval over seeds needs at least 2")
    if not 0.0 < level < 1.0:
        raise InputError(f"level is {level}; it lies between 0 and 1")
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return SeedSummary(mean, mean - half, mean + half)


def judge(
    student: metrics.Floats,
    teacher: metrics.Floats,
    control: metrics.Floats | None,
    labels: metrics.Ints,
    *,
    context: Context,
    config: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    """The content of verdict.json: the last student against the first teacher and against its control.

    `improved` is True only if both differences are real: each interval lies above 0 and each McNemar p-value
    is below 1 - level (with a handful of disagreeing images the bootstrap is too easily convinced). Both
    must hold, so two comparisons need no correction. Without a control it is None and nothing is claimed.

    Args:
        student: (N, K) probabilities of the last student.
        teacher: (N, K) probabilities of the model it is to beat.
        control: (N, K) probabilities of its twin trained on labels alone, or None when there is none.
        labels: (N,) of the images judged on.
        context: what else the run knows.
        config: interval level, resamples and ECE bins.
        seed: of the bootstrap.

    Returns:
        JSON-ready: set, n, level, top1 of each model, comparisons (a `Comparison` of the student with
        `teacher` and, where there is one, with `control`), improved, sentence, reasons and scope.

    Raises:
        InputError: arrays or names that do not match, or settings out of range.
    """
    models = {"student": student, "teacher": teacher} | ({} if control is None else {"control": control})
    hits = {name: metrics.correct(probs, labels) for name, probs in models.items()}
    _check_columns(list(models.values()), context)
    rivals = {name: compare(hits["student"], hits[name], config, seed) for name in hits if name != "student"}
    improved = all(_above(found, config.level) for found in rivals.values()) if control is not None else None
    top1 = {name: float(hit.mean()) for name, hit in hits.items()}
    return {
        "set": context.test,
        "n": len(labels),
        "level": config.level,
        "top1": top1,
        "comparisons": rivals,
        "improved": improved,
        "sentence": _sentence(improved, top1["student"], rivals, context.test, config.level),
        "reasons": reasons.find(student, teacher, labels, context, config.ece_bins)
        + [text for name, found in rivals.items() for text in _power(name, found, config.level)],
        "scope": SCOPE,
    }


def _above(found: Comparison, level: float) -> bool:
    return found["low"] > 0 and found["p_value"] < 1 - level


def _below(found: Comparison, level: float) -> bool:
    return found["high"] < 0 and found["p_value"] < 1 - level


def _sentence(
    improved: bool | None, top1: float, rivals: dict[str, Comparison], test: str, level: float
) -> str:
    """One sentence for people, in percentage points."""
    worse = [_RIVALS[name] for name, found in rivals.items() if _below(found, level)]
    if improved is None:
        opening = "Without a control no gain is claimed"
    elif improved:
        opening = "The student improved"
    else:
        opening = f"The student is worse than {' and '.join(worse)}" if worse else "No gain is shown"
    against = " and ".join(
        f"{100 * found['difference']:+.2f} points against {_RIVALS[name]} ({level:.0%} interval "
        f"{100 * found['low']:+.2f} to {100 * found['high']:+.2f}, p = {found['p_value']:.2g})"
        for name, found in rivals.items()
    )
    return f"{opening}: on {rivals['teacher']['n']:,} {test} images it is right on {top1:.2%}, {against}."


def _power(rival: str, found: Comparison, level: float) -> list[str]:
    """What the number of images leaves open in the comparison with `rival`.

    The smallest difference found with 80 % power is (z_level + z_power) * sqrt(disagreeing share / n), the
    normal approximation of McNemar's test (Connor 1987).
    """
    differ, n = max(found["wins"] + found["losses"], 1), found["n"]  # none seen is not none to be seen
    reach = float(stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(POWER))
    detectable = reach * math.sqrt(differ) / n
    if found["low"] <= 0 <= found["high"] and detectable > GAIN_WORTH_FINDING:
        needed = math.ceil(differ / n * (reach / GAIN_WORTH_FINDING) ** 2)
        return [
            f"the set is too small to tell student from {rival}: {n:,} images find a difference of "
            f"{100 * detectable:.2f} points four times in five, {100 * found['difference']:+.2f} was seen; "
            f"{100 * GAIN_WORTH_FINDING:g} point would take about {needed:,} images"
        ]
    if found["low"] * found["high"] > 0 and found["p_value"] >= 1 - level:
        return [
            f"only {differ} images tell student from {rival} ({found['wins']} to {found['losses']}): "
            f"the interval leaves out 0, the exact test does not (p = {found['p_value']:.2g})"
        ]
    return []


def _check_columns(models: Sequence[metrics.Floats], context: Context) -> None:
    columns = {len(context.classes), len(context.kept), *(probs.shape[1] for probs in models)}
    if len(columns) > 1:
        raise InputError(
            f"classes, kept counts and probabilities disagree on the number of classes: {sorted(columns)}"
        )
