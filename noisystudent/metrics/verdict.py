"""The verdict of a run: whether the pool helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from noisystudent.config import EvaluateConfig
from noisystudent.errors import InputError
from noisystudent.metrics import classification, reasons
from noisystudent.metrics.classification import Floats, Ints
from noisystudent.metrics.headline import AVERAGE, SHORT, decisive, headline
from noisystudent.metrics.paired import Comparison, above, below, compare
from noisystudent.metrics.power import GAIN_WORTH_FINDING, POWER, detectable, differing, images_needed
from noisystudent.metrics.reasons import RunFacts
from noisystudent.run.rundir import CONTROLS

State = Literal["improved", "unproven", "not better"]

_COMPUTE, _PROBE = CONTROLS["same_compute"], CONTROLS["linear_probe"]
_RIVALS = {
    "teacher": "the first teacher",
    CONTROLS["same_steps"]: "the control trained only on labels",
    _COMPUTE: "the control of the same compute",
    _PROBE: "a linear probe on the labels alone",
}

# A limit of the intervals, written into every verdict.json.
SCOPE = (
    "The intervals account for the choice of the images, but not for the training seed: "
    "with another seed every accuracy changes, and only several runs can show by how much."
)


def judge(
    student: Floats,
    teacher: Floats,
    control: Floats | None,
    labels: Ints,
    *,
    same_compute: Floats | None = None,
    linear_probe: Floats | None = None,
    facts: RunFacts,
    config: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    """The content of verdict.json: the last student compared with the first teacher and with its controls.

    Better means an interval above 0 and a McNemar p-value below 1 - level: the bootstrap interval is too
    narrow if models disagree on only a few images. Both comparisons must hold, so neither needs a correction.

    Args:
        student, teacher: (N, K) probabilities of the last student and of the first teachers.
        control, same_compute, linear_probe: (N, K) probabilities of the controls; None: not trained.
        labels: (N,) labels of the evaluated images.
        facts: facts about the run.
        config, seed: interval level, resamples and ECE bins; seed of the bootstrap.

    Returns:
        A dict for JSON: set, n, level, top1 of each model, comparisons (`Comparison` of the student with
        `teacher` and the controls), improved, state (see `_state`), headline (see `headline.headline`),
        sentence, reasons and scope.

    Raises:
        InputError: arrays or names that do not match, or settings out of range.
    """
    given = {"student": student, "teacher": teacher, "control": control}
    given |= {_COMPUTE: same_compute, _PROBE: linear_probe}
    models = {name: probs for name, probs in given.items() if probs is not None}
    _check_columns(list(models.values()), facts)
    hits = {name: classification.correct(probs, labels) for name, probs in models.items()}
    top1 = {name: float(hit.mean()) for name, hit in hits.items()}
    rivals = {name: compare(hits["student"], hits[name], config, seed) for name in hits if name != "student"}
    state = _state(rivals, facts.probe, config.level)
    return {"set": facts.test, "n": len(labels), "level": config.level, "top1": top1, "scope": SCOPE} | {
        "comparisons": rivals,
        "improved": None if state is None else state == "improved",
        "state": state,
        "headline": headline(state, top1["student"], rivals, facts, config.level),
        "sentence": _sentence(state, top1["student"], rivals, facts, config.level),
        "reasons": _better_teacher(state, hits, config, seed)
        + reasons.find(student, teacher, labels, facts, config.ece_bins)
        + [text for name, rival in rivals.items() for text in _power(name, rival, config.level)],
    }


def _state(rivals: dict[str, Comparison], probe: str | None, level: float) -> State | None:
    """What the comparisons of the student with the first teacher and with a control show.

    The control of the same steps shows what the pool adds, so it decides. That of the same compute shows
    whether the labels alone would have given as much for the same work, and a linear probe whether they
    would have for next to no work. One of these decides only if there is no other; otherwise `_sentence` says
    where it disagrees.

    Returns:
        None: there is no control, so no gain is claimed. "improved": the student is better than both.
        "unproven": it is better than the teacher, and better than the control in the mean alone; the sentence
        says how many images would show it. "not better": the reasons say why, the likeliest first.
    """
    if len(rivals) == 1 and probe is None:
        return None
    control = decisive(rivals)  # if it is the teacher: the probe, which is trained on the labels alone
    if not above(rivals["teacher"], level):
        return "not better"
    if above(control, level):
        return "improved"
    return "unproven" if control["difference"] > 0 else "not better"


def _sentence(
    state: State | None, top1: float, rivals: dict[str, Comparison], facts: RunFacts, level: float
) -> str:
    """The main sentence of the verdict, with the differences in percentage points."""
    test, names = facts.test, _RIVALS | ({"teacher": AVERAGE} if facts.teachers > 1 else {})
    differences = " and ".join(
        f"{100 * rival['difference']:+.2f} percentage points compared with {names[name]} "
        f"({level:.0%} interval {100 * rival['low']:+.2f} to {100 * rival['high']:+.2f}, "
        f"p = {rival['p_value']:.2g})"
        for name, rival in rivals.items()
    )
    count = rivals["teacher"]["n"]
    opening = _doubted(state, rivals, facts.probe, level, names)
    text = f"{opening}: the student predicts {top1:.2%} of {count:,} {test} images correctly, {differences}."
    if state != "unproven":
        return text
    control = decisive(rivals)
    needed = images_needed(differing(control), control["difference"], level)
    return (
        f"{text} A difference of {100 * control['difference']:.2f} points from the control is shown by about "
        f"{needed:,} {test} images with a probability of {POWER:.0%}: give more {test} images."
    )


def _doubted(
    state: State | None,
    rivals: dict[str, Comparison],
    probe: str | None,
    level: float,
    names: Mapping[str, str],
) -> str:
    """The opening, after a sentence that says so if the student does not surpass the linear probe."""
    opening = _opening(state, rivals, level, names)
    if probe is None or above(rivals[probe], level):
        return opening
    if rivals[probe]["difference"] <= 0:
        name = _RIVALS[_PROBE] if probe == _PROBE else f"{names[probe]}, {_RIVALS[_PROBE]},"
        better = "better" if below(rivals[probe], level) else "as good"
        doubt = f"On this data the pool added nothing: {name} is {better}. "
    elif state == "improved":
        doubt = f"On this data the pool is not shown to add anything to {_RIVALS[_PROBE]}. "
    else:  # the opening names the probe
        return opening
    if state == "improved":  # over the others
        surpassed = [names[rival] for rival in rivals if above(rivals[rival], level)]
        opening = f"The student is better than {' and '.join(surpassed)}"
    return doubt + opening


def _opening(
    state: State | None, rivals: dict[str, Comparison], level: float, names: Mapping[str, str]
) -> str:
    worse = [names[name] for name, rival in rivals.items() if below(rival, level)]
    not_better = [names[name] for name, rival in rivals.items() if not above(rival, level)]
    if state is None:
        return "No gain is claimed, because there is no control to compare with"
    if state == "improved" and names[_COMPUTE] in not_better:
        # The same steps decide, but with the same work on the labels the user may be as well off.
        verb = "is worse than" if names[_COMPUTE] in worse else "is not shown to be better than"
        return f"The student improved, but {verb} {names[_COMPUTE]}"
    if state == "improved":
        return "The student improved"
    if worse:
        return f"The student is worse than {' and '.join(worse)}"
    if state == "unproven":
        return (
            f"Not proven yet. The student is better than {names['teacher']}, but not significantly better "
            f"than {' and '.join(not_better)}"
        )
    return f"No significant gain over {' and '.join(not_better)}"


def _better_teacher(
    state: State | None, hits: Mapping[str, NDArray[np.bool_]], config: EvaluateConfig, seed: int
) -> list[str]:
    """Reason of a missing gain: the labels alone give more than the teacher has, which labelled the pool."""
    control = hits.get(CONTROLS["same_steps"])
    if state == "improved" or control is None:
        return []
    gain = compare(control, hits["teacher"], config, seed)
    if not above(gain, config.level):
        return []
    points = 100 * gain["difference"]
    return [
        f"the teacher could be better: the control, trained on the same labels, is {points:.2f} points above"
        " it; train the teacher as long as the student, and with the same network"
    ]


def _power(name: str, rival: Comparison, level: float) -> list[str]:
    """Warnings of too few images, or too few disagreements, to compare the student with `name`."""
    name = SHORT[name]
    disagreeing, n, wins, losses = differing(rival), rival["n"], rival["wins"], rival["losses"]
    smallest = detectable(disagreeing, n, level)
    if rival["low"] <= 0 <= rival["high"] and smallest > GAIN_WORTH_FINDING:
        needed = images_needed(disagreeing, GAIN_WORTH_FINDING, level)
        return [
            f"there are too few images to compare student and {name}: {n:,} images detect a difference of "
            f"{100 * smallest:.2f} points with a probability of {POWER:.0%}; the measured difference is "
            f"{100 * rival['difference']:+.2f} points; to detect {100 * GAIN_WORTH_FINDING:g} point, "
            f"about {needed:,} images are needed"
        ]
    if rival["low"] * rival["high"] > 0 and rival["p_value"] >= 1 - level:
        return [
            f"student and {name} differ on only {wins + losses} images (only the student is right on {wins}, "
            f"only the {name} on {losses}): the interval excludes 0, but the exact test is not significant "
            f"(p = {rival['p_value']:.2g})"
        ]
    return []


def _check_columns(models: Sequence[Floats], facts: RunFacts) -> None:
    columns = {len(facts.classes), len(facts.kept), *(probs.shape[1] for probs in models)}
    if len(columns) > 1:
        raise InputError(
            f"classes, kept counts and probabilities disagree on the number of classes: {sorted(columns)}"
        )
