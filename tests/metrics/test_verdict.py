"""The verdict: what it claims, and what it never claims."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from judged import FACTS, FAIR, GOOD, LABELS, POOR, K, N, Probs, judge, model, texts

from noisystudent.config import EvaluateConfig
from noisystudent.metrics import paired, verdict


def test_a_clear_gain_over_both_is_an_improvement() -> None:
    found = judge(GOOD, POOR, FAIR)
    assert found["improved"] is True
    assert found["sentence"].startswith(
        "The student improved: the student predicts 90.00% of 2,000 test images correctly, "
        "+15.00 percentage points compared with the first teacher"
    )
    assert found["top1"] == {"student": 0.9, "teacher": 0.75, "control": 0.8}
    assert found["comparisons"]["teacher"]["difference"] == pytest.approx(0.15)
    assert found["comparisons"]["control"]["low"] > 0
    assert found["reasons"] == []
    assert (found["set"], found["n"], found["level"]) == ("test", N, 0.95)
    assert json.loads(json.dumps(found)) == found


def test_without_a_control_the_word_never_appears() -> None:
    bad = dataclasses.replace(FACTS, test="val", pool_size=50, kept=(0, 5, 0, 0, 0), pseudo_accuracy=0.1)
    for student, teacher, facts in [(GOOD, POOR, FACTS), (POOR, GOOD, bad), (GOOD, GOOD, bad)]:
        found = judge(student, teacher, None, facts)
        assert found["improved"] is None
        assert list(found["comparisons"]) == ["teacher"]
        assert "improve" not in texts(found)
        assert found["sentence"].startswith("No gain is claimed, because there is no control to compare with")


def test_a_gain_over_one_of_two_is_none() -> None:
    rivals = [
        (POOR, GOOD, "the control trained only on labels:"),  # equal to the control, so in no case "unproven"
        (GOOD, POOR, "the first teacher:"),
        (GOOD, GOOD, "the first teacher and the control trained only on labels:"),
    ]
    for teacher, control, unbeaten in rivals:
        found = judge(GOOD, teacher, control)
        assert found["improved"] is False and found["state"] == "not better"
        assert found["sentence"].startswith(f"No significant gain over {unbeaten}")
        assert "improve" not in texts(found)


def test_a_gain_over_the_teacher_alone_is_not_proven_yet_and_says_how_many_images_decide() -> None:
    student = model(slice(310, 700))  # 390 errors; the control has 400 others
    found = judge(student, POOR, FAIR)
    assert found["state"] == "unproven" and found["improved"] is False
    opening = (
        "Not proven yet. The student is better than the first teacher, but not significantly better than "
    )
    assert found["sentence"].startswith(f"{opening}the control trained only on labels:")
    needed = int(re.findall(r"about ([\d,]+) test images", found["sentence"])[0].replace(",", ""))
    row = found["comparisons"]["control"]
    churn, gain = (row["wins"] + row["losses"]) / N, row["difference"]
    rng, shown = np.random.default_rng(7), 0
    for seed in range(200):
        drawn = rng.choice([1, -1, 0], size=needed, p=[(churn + gain) / 2, (churn - gain) / 2, 1 - churn])
        shown += paired.compare(drawn == 1, drawn == -1, EvaluateConfig(resamples=300), seed)["low"] > 0
    assert 0.7 <= shown / 200 <= 0.9


def test_a_student_below_its_control_in_the_mean_is_not_better() -> None:
    found = judge(model(slice(100, 505)), model(slice(100, 900)), FAIR)
    assert found["state"] == "not better"


def test_a_control_above_the_teacher_is_the_first_reason_of_a_missing_gain() -> None:
    said = "the teacher could be better: the control, trained on the same labels, is 5.00 points above it"
    assert judge(POOR, POOR, FAIR)["reasons"][0].startswith(said)
    assert judge(POOR, FAIR, POOR)["reasons"] == judge(POOR, FAIR, None)["reasons"], "the teacher is above it"
    assert said not in str(judge(GOOD, POOR, FAIR)["reasons"]), "the student is better than both"


def test_the_likeliest_reason_comes_first() -> None:
    facts = dataclasses.replace(FACTS, test="val", pool_size=250, kept=(50,) * K, pseudo_accuracy=0.5)
    starts = [text.split(":")[0] for text in judge(GOOD, FAIR, FAIR, facts)["reasons"]]
    assert starts[:2] == ["many pseudo-labels are wrong", "the pool is small"]
    assert starts[2].startswith("there is no test set")


def test_a_student_that_got_worse_is_called_so() -> None:
    found = judge(POOR, FAIR, GOOD)
    assert found["improved"] is False
    expected = "The student is worse than the first teacher and the control trained only on labels"
    assert found["sentence"].startswith(expected) and "-15.00 percentage points" in found["sentence"]


def test_identical_models_are_never_an_improvement() -> None:
    found = judge(GOOD, GOOD, GOOD)
    assert found["improved"] is False
    for row in found["comparisons"].values():
        assert (row["difference"], row["low"], row["high"], row["p_value"]) == (0, 0, 0, 1)


def test_a_handful_of_images_is_not_enough_even_where_the_bootstrap_thinks_so() -> None:
    student, rival = model(slice(0, 0), 0.95), model(slice(0, 5), 0.95)
    found = judge(student, rival, rival)
    assert found["comparisons"]["control"]["low"] > 0 and found["comparisons"]["control"]["p_value"] > 0.05
    assert found["improved"] is False
    for name in ("teacher", "control"):
        expected = (
            f"student and {name} differ on only 5 images "
            f"(only the student is right on 5, only the {name} on 0)"
        )
        assert sum(text.startswith(expected) for text in found["reasons"]) == 1


def test_pure_luck_is_called_an_improvement_seldom() -> None:
    rng = np.random.default_rng(5)
    claimed = 0
    for seed in range(200):
        student, teacher, control = (model(rng.permutation(N)[:400]) for _ in range(3))
        config = EvaluateConfig(resamples=300)
        found = verdict.judge(student, teacher, control, LABELS, facts=FACTS, config=config, seed=seed)
        claimed += found["improved"]
    assert claimed <= 8  # each comparison alone would err upwards in 2.5 %, both together less often


# --- the control of the same compute ---


def test_the_same_steps_decide_and_the_same_compute_disagrees_in_words() -> None:
    for compute, words in (
        (GOOD, "The student improved, but is not shown to be better than the control of the same compute:"),
        (POOR, "The student improved:"),
    ):
        found = judge(GOOD, POOR, POOR, same_compute=compute)
        assert found["improved"] is True and found["sentence"].startswith(words)
        assert list(found["comparisons"]) == ["teacher", "control", "control-compute"]
        assert "compared with the control of the same compute (95% interval" in found["sentence"]
    found = judge(POOR, POOR, POOR, same_compute=GOOD)
    assert found["improved"] is False and "worse than the control of the same compute" in found["sentence"]
    alone = judge(GOOD, POOR, None, same_compute=GOOD)
    assert alone["improved"] is False, "the only control decides"
    assert judge(GOOD, POOR, None, same_compute=POOR)["improved"] is True


# --- the linear probe ---

ADDED_NOTHING = "On this data the pool added nothing: a linear probe on the labels alone is"


@pytest.mark.parametrize("teacher", [POOR, FAIR, GOOD])
@pytest.mark.parametrize("control", [POOR, FAIR, GOOD, None])
def test_a_probe_that_equals_the_student_shows_that_the_pool_added_nothing(
    teacher: Probs, control: Probs | None
) -> None:
    for student, probe, words in ((FAIR, FAIR, "as good."), (FAIR, GOOD, "better.")):
        found = judge(student, teacher, control, linear_probe=probe)
        assert found["sentence"].startswith(f"{ADDED_NOTHING} {words} ")
        assert found["comparisons"]["control-probe"]["difference"] <= 0


@pytest.mark.parametrize("control", [POOR, FAIR, GOOD])
@pytest.mark.parametrize("probe", [POOR, FAIR, GOOD])
def test_beside_the_control_of_the_same_steps_the_probe_does_not_decide(control: Probs, probe: Probs) -> None:
    for student, teacher in itertools.product((POOR, FAIR, GOOD), repeat=2):
        without, found = (judge(student, teacher, control, linear_probe=one) for one in (None, probe))
        assert (found["state"], found["improved"]) == (without["state"], without["improved"])
        assert found["comparisons"]["control"] == without["comparisons"]["control"]
        if found["comparisons"]["control-probe"]["low"] > 0 and found["improved"]:
            assert found["sentence"].startswith("The student improved: ")


def test_a_gain_over_all_but_the_probe_is_named_for_what_it_is() -> None:
    found = judge(GOOD, POOR, FAIR, linear_probe=GOOD)
    better = (
        "The student is better than the first teacher and the control trained only on labels: the student"
    )
    assert found["sentence"].startswith(f"{ADDED_NOTHING} as good. {better} predicts 90.00%")
    near = model(slice(310, 700))  # 390 errors; the probe has 400 others
    found = judge(near, POOR, POOR, linear_probe=FAIR)
    doubt = "On this data the pool is not shown to add anything to a linear probe on the labels alone. "
    assert found["sentence"].startswith(
        f"{doubt}The student is better than the first teacher and the control"
    )


def test_a_probe_is_a_control_where_there_is_no_other() -> None:
    assert judge(GOOD, POOR, None, linear_probe=FAIR)["improved"] is True
    assert judge(GOOD, POOR, None, linear_probe=GOOD)["improved"] is False


def test_a_first_teacher_that_is_the_probe_is_named_so() -> None:
    facts = dataclasses.replace(FACTS, probe="teacher")
    found = judge(FAIR, FAIR, POOR, facts)
    named = "the first teacher, a linear probe on the labels alone, is as good. "
    assert found["sentence"].startswith(f"On this data the pool added nothing: {named}")
    assert list(found["comparisons"]) == ["teacher", "control"]
    assert judge(GOOD, FAIR, None, facts)["improved"] is True, "it is trained on the labels alone"
    assert judge(GOOD, FAIR, POOR, facts) == judge(GOOD, FAIR, POOR)
