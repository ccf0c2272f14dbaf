"""Why there is no gain: each reason where it applies, and nowhere else."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from judged import FACTS, FAIR, GOOD, LABELS, POOR, K, N, Probs, judge, model

from noisystudent.config import EvaluateConfig
from noisystudent.errors import InputError
from noisystudent.metrics import paired, reasons, verdict
from noisystudent.metrics.precision import Precision
from noisystudent.metrics.reasons import selection_warnings


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
    "junk": (
        GOOD,
        FAIR,
        {"junk": (200, 40), "junk_rejection": 0.05},
        r"10\.0% are marked as junk, of labelled images 5% would be, and the selection kept 40 of them",
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


@pytest.mark.parametrize("name", ["over-confident", "under-confident"])
def test_the_confidence_of_a_teacher_that_selects_nothing_is_no_reason(name: str) -> None:
    student, teacher, changes, _ = REASONS[name]
    facts = dataclasses.replace(FACTS, selects=False, **changes)
    assert judge(student, teacher, POOR, facts)["reasons"] == []


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


def test_a_selection_that_is_small_or_wrong_is_warned_of() -> None:
    assert selection_warnings(500, 1_000, Precision(200, 100, 90)) == []
    assert selection_warnings(500, 1_000, None) == []
    (small,) = selection_warnings(99, 1_000, Precision(200, 100, 75))  # 75 of 100 may be 80 %
    assert "only 9.9% of the pool is kept" in small and "decrease selection.threshold" in small
    (wrong,) = selection_warnings(500, 1_000, Precision(200, 100, 61))
    assert "fewer than 80% of the kept labels" in wrong and "increase selection.threshold" in wrong


def test_no_advice_names_the_mode_or_the_limit_that_the_selection_does_not_have() -> None:
    """In mode adaptive `selection.threshold` has no effect, and the mode is taken already."""
    few = dataclasses.replace(FACTS, kept=(0, 5, 0, 0, 0), pseudo_accuracy=None)
    sure, unsure = model(slice(0, 900), 0.99), model(slice(0, 200), 0.3)
    for teacher in (sure, unsure):
        plain, adaptive = (
            " ".join(reasons.find(teacher, teacher, LABELS, dataclasses.replace(few, adaptive=mode), 15))
            for mode in (False, True)
        )
        assert "take selection.mode adaptive" in plain and "selection.threshold" in plain
        assert "selection.mode" not in adaptive and "threshold," not in adaptive
        assert "selection.strength" in adaptive and "give more labels of them" in adaptive
