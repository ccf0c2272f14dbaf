"""A training that is longer, or has shorter epochs, than the one it is compared with has its schedule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

STAIRS = {"schedule": "staircase", "decay_epochs": 0.2, "warmup_epochs": 0.0, "log_steps": 1}


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stretched") / "run"
    train = {**tiny.RECIPE["teacher"]["train"], **STAIRS, "steps": 40, "lr": 0.1}
    fields = [("teacher.train", train), ("folds", 2), ("control", ["same_steps", "same_compute"])]
    tiny.run(tiny.config(images, *fields, ("keep_going", True)), out)
    return out


def rates(run: Path, model: str) -> list[float]:
    lines = (run / model / "metrics.jsonl").read_text().splitlines()
    return [row["lr"] for row in map(json.loads, lines) if "lr" in row]


def test_the_control_of_the_same_compute_falls_as_far_as_that_of_the_same_steps(run: Path) -> None:
    same, longer = rates(run, "iteration-1/control"), rates(run, "iteration-1/control-compute")
    assert len(longer) > 1.5 * len(same), "it is longer"
    assert same[-1] < 0.2 * same[0]
    for share in (0.25, 0.5, 0.75, 1.0):
        at, of = (rate[round(share * len(rate)) - 1] for rate in (longer, same))
        assert at == pytest.approx(of, rel=0.1), share  # a stair is 3 %


def test_a_fold_has_the_rates_of_the_teacher(run: Path) -> None:
    teacher = rates(run, "iteration-0/teacher")
    for fold in (1, 2):
        assert rates(run, f"iteration-0/fold-{fold}") == pytest.approx(teacher, rel=0.04)
