"""The verdict in three short sentences, for a reader who knows no statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from noisystudent.metrics.paired import Comparison, above, below
from noisystudent.metrics.power import GAIN_WORTH_FINDING, differing, images_needed
from noisystudent.metrics.reasons import RunFacts
from noisystudent.run.rundir import CONTROLS

SHORT = {
    "teacher": "teacher",
    CONTROLS["same_steps"]: "control",
    CONTROLS["same_compute"]: "control of the same compute",
    CONTROLS["linear_probe"]: "linear probe",
}
"""Short names of the rivals of the last student."""

AVERAGE = "the average of the first teachers"
"""What takes the place of the teacher if there were several."""


def lines(verdict: Mapping[str, Any]) -> list[str]:
    """The content of verdict.json in lines for a terminal: the headline and the reasons, no statistics."""
    first = " ".join(verdict.get("headline") or [verdict["sentence"]])  # older runs have only the sentence
    prefix = "worth a look: " if verdict.get("improved") else ""
    return [first, *(prefix + reason for reason in verdict["reasons"])]


def headline(
    state: str | None, top1: float, rivals: Mapping[str, Comparison], facts: RunFacts, level: float
) -> list[str]:
    """Return what was shown, the accuracy with its differences, and what to do.

    Args:
        state: of the verdict: improved, unproven, not better, or None without a control.
        top1: accuracy of the last student.
        rivals: the student compared with `teacher` and the controls.
        facts: name of the evaluated set, number of first teachers, and which rival is a linear probe.
        level: confidence level of the comparisons.
    """
    images, test = rivals["teacher"]["n"], facts.test
    names = {name: f"the {short}" for name, short in SHORT.items()}
    if facts.teachers > 1:
        names["teacher"] = AVERAGE
    differences = ", ".join(_difference(rival, names[name], level) for name, rival in rivals.items())
    accuracy = f"The last student gets {100 * top1:.2f} % of {images:,} {test} images: {differences}."
    opening = _opening(state, {names[name]: rival for name, rival in rivals.items()}, level)
    if state == "improved" and facts.probe is not None and rivals[facts.probe]["difference"] <= 0:
        opening = f"The pool added nothing: {names[facts.probe]} is as good as the student or better."
    return [opening, accuracy, _advice(state, rivals, test, level)]


def decisive(rivals: Mapping[str, Comparison]) -> Comparison:
    """The comparison that decides whether the pool helped: with the first control, otherwise the teacher."""
    return next((rival for name, rival in rivals.items() if name != "teacher"), rivals["teacher"])


def _opening(state: str | None, rivals: Mapping[str, Comparison], level: float) -> str:
    worse = [name for name, rival in rivals.items() if below(rival, level)]
    open_ = [name for name, rival in rivals.items() if not above(rival, level)]
    if state is None:
        return "No gain is claimed: no control was trained."
    if state == "improved" and open_:
        return f"The pool helped, but the student is not shown to be better than {' and '.join(open_)}."
    if state == "improved":
        return "The pool helped."
    if worse:
        return f"The student is worse than {' and '.join(worse)}."
    return "Not proven yet." if state == "unproven" else "No gain was shown."


def _difference(rival: Comparison, name: str, level: float) -> str:
    if rival["wins"] == rival["losses"]:
        return f"as many as {name}"
    side = "above" if rival["difference"] > 0 else "below"
    significant = "significant" if above(rival, level) or below(rival, level) else "not significant"
    return f"{100 * abs(rival['difference']):.2f} points {side} {name} ({significant})"


def _advice(state: str | None, rivals: Mapping[str, Comparison], test: str, level: float) -> str:
    """What a reader can do next. It depends on the state, and on how small a gain the images would show."""
    if state is None:
        return "Train a control to know what the pool adds: --control same_steps."
    if state == "improved":
        return (
            "Another training seed would change the figures: repeat the run with two more seeds to be sure."
        )
    if any(below(rival, level) for rival in rivals.values()):
        return f"More {test} images would hardly change that the student is worse."
    # The comparison that is not won.
    rival = decisive(rivals) if above(rivals["teacher"], level) else rivals["teacher"]
    images, point = rival["n"], f"{100 * GAIN_WORTH_FINDING:g} point"
    more = images_needed(differing(rival), GAIN_WORTH_FINDING, level) - images
    if more <= 0:
        return (
            f"These {images:,} {test} images would probably show a gain of {point}; there is probably less."
        )
    return f"Add about {_rounded(more):,} {test} images to detect {point}."


def _rounded(number: int) -> int:
    """Round up to two significant digits: 1,043 -> 1,100."""
    unit = 10.0 ** max(0, len(str(number)) - 2)
    return round(math.ceil(number / unit) * unit)
