"""The three sentences of the verdict agree with its state and its numbers."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import FACTS, FAIR, GOOD, LABELS, POOR, K, N, Probs, judge, model

from noisystudent.metrics.headline import lines
from noisystudent.metrics.power import POWER, images_needed


def test_each_state_has_its_opening() -> None:
    openings = {
        "The pool helped.": judge(GOOD, POOR, FAIR),
        "Not proven yet.": judge(model(slice(310, 700)), POOR, FAIR),
        "No gain was shown.": judge(GOOD, GOOD, GOOD),
        "The student is worse than the teacher and the control.": judge(POOR, GOOD, GOOD),
        "No gain is claimed: no control was trained.": judge(GOOD, POOR, None),
    }
    for opening, found in openings.items():
        assert found["headline"][0] == opening
        assert len(found["headline"]) == 3


def test_a_reason_does_not_read_as_a_failure_after_an_improvement() -> None:
    facts = dataclasses.replace(FACTS, pool_size=250, kept=(50,) * K)
    for student, start in ((GOOD, "worth a look: the pool is small"), (POOR, "the pool is small")):
        verdict = judge(student, FAIR, FAIR, facts)
        first, *others = lines(verdict)
        assert first == " ".join(verdict["headline"])
        assert len(others) == len(verdict["reasons"]) and any(line.startswith(start) for line in others)


def test_a_rival_that_is_not_surpassed_is_named() -> None:
    found = judge(GOOD, POOR, FAIR, same_compute=GOOD)
    assert found["state"] == "improved"
    assert found["headline"][0].endswith("not shown to be better than the control of the same compute.")


def test_a_linear_probe_that_is_as_good_is_said_first_as_in_the_sentence() -> None:
    found = judge(GOOD, POOR, FAIR, linear_probe=GOOD)
    assert found["state"] == "improved"
    assert found["headline"][0].startswith("The pool added nothing: the linear probe")
    assert "the pool added nothing" in found["sentence"]


def test_several_first_teachers_are_compared_by_their_average() -> None:
    found = judge(GOOD, POOR, FAIR, facts=dataclasses.replace(FACTS, teachers=2))
    assert "above the average of the first teachers (significant)" in found["headline"][1]
    assert "the teacher" not in " ".join(found["headline"])


@settings(max_examples=30, deadline=None)
@given(*[st.integers(0, N - 400)] * 3)
def test_the_numbers_are_those_of_the_comparisons(student: int, teacher: int, control: int) -> None:
    found = judge(_wrong(student), _wrong(teacher), _wrong(control))
    line = found["headline"][1]
    assert f"{100 * found['top1']['student']:.2f} % of {N:,} test images" in line
    for name, rival in found["comparisons"].items():
        sure = rival["low"] * rival["high"] > 0 and rival["p_value"] < 0.05
        if rival["wins"] == rival["losses"]:
            assert f"as many as the {name}" in line
        else:
            side = "above" if rival["difference"] > 0 else "below"
            what = f"{abs(100 * rival['difference']):.2f} points {side} the {name} "
            assert what + ("(significant)" if sure else "(not significant)") in line


def _wrong(first: int) -> Probs:
    return model(slice(first, first + 150 + first % 250))


@pytest.mark.parametrize("gap", [10, 40])
def test_as_many_images_as_it_advises_detect_a_point(gap: int) -> None:
    student = model(np.arange(300 + gap, 700))
    found = judge(student, POOR, FAIR)
    assert found["state"] != "improved"
    control = found["comparisons"]["control"]
    share = max(control["wins"] + control["losses"], 1) / N
    needed = images_needed(share, 0.01, 0.95)
    advice = found["headline"][2]
    if needed <= N:
        assert advice.startswith(f"These {len(LABELS):,} test images would probably show"), POWER
    else:
        (more,) = re.findall(r"Add about ([\d,]+) test images", advice)
        assert needed - N <= int(more.replace(",", "")) <= 1.1 * (needed - N) + 1


def test_the_advice_is_about_the_comparison_that_is_not_won() -> None:
    """The student surpasses the control by far, but not the teacher."""
    teacher = model(slice(2, 202))
    found = judge(GOOD, teacher, POOR)
    needed = images_needed(4 / N, 0.01, 0.95)
    assert (found["state"], needed <= N) == ("not better", True)
    assert found["headline"][2].startswith(f"These {N:,} test images would probably show")
    student, teacher = model(slice(0, 400)), model(slice(399, 800))
    needed = images_needed(799 / N, 0.01, 0.95)
    (more,) = re.findall(
        r"Add about ([\d,]+) test", judge(student, teacher, model(slice(0, 1400)))["headline"][2]
    )
    assert needed - N <= int(more.replace(",", "")) <= 1.1 * (needed - N) + 1


def test_no_more_images_are_asked_for_by_a_student_that_is_worse() -> None:
    for found in (judge(FAIR, POOR, GOOD), judge(POOR, GOOD, GOOD), judge(POOR, GOOD, model(slice(0, 900)))):
        assert found["headline"][0].startswith("The student is worse")
        assert found["headline"][2] == "More test images would hardly change that the student is worse."
