"""The verdict: what it claims, what it never claims, and why there is no gain."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from noisystudent.config import EvaluateConfig
from noisystudent.errors import InputError
from noisystudent.metrics import paired, verdict
from noisystudent.metrics.precision import Precision
from noisystudent.metrics.reasons import RunFacts, selection_warnings

N, K = 2000, 5
LABELS = np.arange(N) % K
# Nothing to complain about: a large pool, well used, right, and judged on a test set.
FACTS = RunFacts(
    test="test",
    classes=("ant", "bee", "cat", "dog", "eel"),
    num_labeled=100,
    pool_size=2000,
    kept=(300,) * K,
    pseudo_accuracy=0.95,
)

Probs = NDArray[np.float32]


def model(wrong: slice | NDArray[np.int64], confidence: float | None = None) -> Probs:
    """Probabilities that are wrong on the given images, by default as confident as they are right."""
    predicted = LABELS.copy()
    predicted[wrong] = (predicted[wrong] + 1) % K
    sure = float((predicted == LABELS).mean()) if confidence is None else confidence
    probs = np.full((N, K), (1 - sure) / (K - 1), dtype=np.float32)
    probs[np.arange(N), predicted] = sure
    return probs


GOOD, FAIR, POOR = model(slice(0, 200)), model(slice(100, 500)), model(slice(100, 600))


def judge(
    student: Probs,
    teacher: Probs,
    control: Probs | None,
    facts: RunFacts = FACTS,
    same_compute: Probs | None = None,
    **settings: Any,
) -> dict[str, Any]:
    config, more = EvaluateConfig(**settings), {"same_compute": same_compute}
    return verdict.judge(student, teacher, control, LABELS, facts=facts, config=config, seed=0, **more)


def texts(found: dict[str, Any]) -> str:
    return json.dumps([found["sentence"], found["reasons"], found["scope"]]).lower()


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


def test_the_likeliest_reason_comes_first() -> None:
    facts = dataclasses.replace(FACTS, test="val", pool_size=250, kept=(50,) * K, pseudo_accuracy=0.5)
    starts = [text.split(":")[0] for text in judge(GOOD, FAIR, GOOD, facts)["reasons"]]
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


def lost_class() -> Probs:
    """Right on all but one class, which it never predicts."""
    return model(np.flatnonzero(LABELS == 2))


REASONS: dict[str, tuple[Probs, Probs, dict[str, Any], str]] = {
    "val": (GOOD, FAIR, {"test": "val"}, "there is no test set"),
    "small pool": (
        GOOD,
        FAIR,
        {"pool_size": 250, "kept": (50,) * K},
        "250 unlabelled images, 2.5 for each of the 100 labelled images; .* fewer than 3 ",
    ),
    "coverage": (GOOD, FAIR, {"pool_size": 20_000}, r"1,500 of 20,000 images \(7\.5%\)"),
    "no images": (
        GOOD,
        FAIR,
        {"kept": (0, 300, 300, 0, 300)},
        "kept no pool image of 2 of 5 classes: ant, dog",
    ),
    "few images": (
        GOOD,
        FAIR,
        {"kept": (300, 9, 300, 300, 10)},
        "fewer than 10 distinct pool images of 1 of 5 classes: bee",
    ),
    "expected": (
        GOOD,
        FAIR,
        {"pseudo_accuracy": None, "expected": Precision(200, 100, 61)},
        r"probably wrong: about 61\.0% of the kept labels are expected to be right",
    ),
    "by threshold": (
        GOOD,
        FAIR,
        {
            "pseudo_accuracy": None,
            "expected": Precision(200, 100, 61, source="out of fold"),
            "by_threshold": "84.0% of the 50 from 0.9 on",
        },
        r"200 labelled images, out of fold, .*; by confidence: 84\.0% of the 50 from 0\.9 on; keep fewer",
    ),
    "pseudo-labels": (GOOD, FAIR, {"pseudo_accuracy": 0.61}, r"61\.0% of the kept pseudo-labels are right"),
    "weak teacher": (
        GOOD,
        model(slice(0, 1200)),
        {},
        r"the teacher is weak: it predicts only 40\.0% of the test images correctly",
    ),
    "over-confident": (
        GOOD,
        model(slice(100, 500), 0.95),
        {},
        r"over-confident.*95\.0%, accuracy 80\.0%, ECE 0\.150",
    ),
    "under-confident": (
        GOOD,
        model(slice(100, 500), 0.6),
        {},
        r"under-confident.*60\.0%, accuracy 80\.0%, ECE 0\.200",
    ),
    "copy": (model(slice(102, 502)), FAIR, {}, r"agree on 99\.8% of the test images, .* wrong on 20\.0%"),
    "lost class": (
        lost_class(),
        POOR,
        {},
        "never predicts 1 of 5 classes; the teacher predicts 1 of them: cat",
    ),
    "too small": (
        model(slice(310, 700)),
        FAIR,
        {},
        r"too few images to compare student and teacher: 2,000 .* \+0\.50 points; to detect 1 point",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_each_reason_is_found_with_its_number_and_only_where_it_applies(name: str) -> None:
    student, teacher, changes, pattern = REASONS[name]
    found = judge(student, teacher, POOR, dataclasses.replace(FACTS, **changes))
    assert len(found["reasons"]) == 1, found["reasons"]
    assert re.search(pattern, found["reasons"][0])


def test_the_images_it_names_are_enough() -> None:
    student = model(slice(310, 700))
    found = judge(student, FAIR, POOR)["reasons"][0]
    needed = int(found.split("about ")[1].split(" ")[0].replace(",", ""))
    row = judge(student, FAIR, POOR)["comparisons"]["teacher"]
    churn = (row["wins"] + row["losses"]) / N
    rng = np.random.default_rng(6)
    found_gain = 0
    for seed in range(200):
        drawn = rng.choice([1, -1, 0], size=needed, p=[(churn + 0.01) / 2, (churn - 0.01) / 2, 1 - churn])
        found_gain += paired.compare(drawn == 1, drawn == -1, EvaluateConfig(resamples=300), seed)["low"] > 0
    assert 0.7 <= found_gain / 200 <= 0.9  # one point is found four times in five


def test_a_rare_class_that_goes_unpredicted_is_not_called_lost() -> None:
    labels = np.array([0] * 100 + [1] * 9)
    probs = np.tile(np.array([0.9, 0.1, 0.0], dtype=np.float32), (109, 1))
    facts = dataclasses.replace(FACTS, classes=("a", "b", "c"), kept=(900, 900, 900))
    config = EvaluateConfig()
    for extra, lost in [(0, False), (1, True)]:
        more = np.concatenate([labels, np.ones(extra, dtype=np.int64)])
        both = np.concatenate([probs, probs[:extra]])
        found = verdict.judge(both, both, None, more, facts=facts, config=config, seed=0)
        assert any("never predicts 1 of 3 classes" in text for text in found["reasons"]) == lost


def test_no_disagreement_on_few_images_is_no_proof_of_none() -> None:
    probs, labels = GOOD[200:220], LABELS[200:220]
    found = verdict.judge(probs, probs, None, labels, facts=FACTS, config=EvaluateConfig(), seed=0)
    expected = "too few images to compare student and teacher: 20 images"
    assert any(expected in text for text in found["reasons"])


def test_long_lists_of_classes_are_cut() -> None:
    labels = np.zeros(50, dtype=np.int64)
    probs = np.eye(30, dtype=np.float32)[labels]
    facts = dataclasses.replace(
        FACTS, classes=tuple(f"class-{i}" for i in range(30)), kept=(0,) * 29 + (500,)
    )
    config = EvaluateConfig()
    found = verdict.judge(probs, probs, None, labels, facts=facts, config=config, seed=0)
    assert any(
        ": class-0, class-1, class-2, class-3, class-4 and 24 more;" in text for text in found["reasons"]
    )


def test_an_empty_pool_is_judged_without_an_error() -> None:
    facts = dataclasses.replace(FACTS, pool_size=0, kept=(0,) * K, pseudo_accuracy=None)
    reasons = judge(GOOD, FAIR, FAIR, facts)["reasons"]
    assert any("the pool is small: 0 unlabelled images" in text for text in reasons)


def test_columns_that_do_not_match_are_refused() -> None:
    with pytest.raises(InputError, match=r"number of classes: \[4, 5\]"):
        judge(GOOD, FAIR, None, dataclasses.replace(FACTS, classes=("a", "b", "c", "d")))
    with pytest.raises(InputError, match=r"number of classes: \[5, 6\]"):
        judge(GOOD, np.pad(FAIR, ((0, 0), (0, 1))), None)


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


def test_a_selection_that_is_small_or_wrong_is_warned_of() -> None:
    assert selection_warnings(500, 1_000, Precision(200, 100, 90)) == []
    assert selection_warnings(500, 1_000, None) == []
    (small,) = selection_warnings(99, 1_000, Precision(200, 100, 75))  # 75 of 100 may be 80 %
    assert "only 9.9% of the pool is kept" in small and "decrease selection.threshold" in small
    (wrong,) = selection_warnings(500, 1_000, Precision(200, 100, 61))
    assert "fewer than 80% of the kept labels" in wrong and "increase selection.threshold" in wrong
