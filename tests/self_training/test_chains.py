"""Runs that are stopped again and again, each time with other neutral fields, end as an undisturbed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny

from noisystudent.console import Progress, StopFlag
from noisystudent.errors import Stopped
from noisystudent.self_training import self_train

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "student.pseudo_label.part_size": (1, 8, 10, 16, 27, 64),
    "data.workers": (0, 1, 3),
    "data.max_bad_fraction": (0.01, 0.5),
    **{
        f"{learner}.train.{name}": choices
        for learner in ("teacher", "student")
        for name, choices in {
            "log_steps": (1, 3, 5, 50),
            "eval_steps": (None, 1, 4, 10),
            "checkpoint_steps": (1, 2, 5, 500),
        }.items()
    },
}


class StopAfter(StopFlag):
    """A signal comes when the work has looked for one a number of times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    @property
    def signal(self) -> str | None:  # type: ignore[override]
        self.looks -= 1
        return "SIGTERM" if self.looks < 0 else None


def edits(rng: np.random.Generator) -> list[tuple[str, Any]]:
    names = rng.choice(list(NEUTRAL), 4, replace=False)
    return [(str(name), NEUTRAL[name][rng.integers(len(NEUTRAL[name]))]) for name in names]


def chain(images: Path, out: Path, rng: np.random.Generator, most: int) -> int:
    """Run with random edits, and stop it at random moments, `most` times or less; returns how often."""
    for stops in range(most):
        progress = Progress(StopAfter(int(rng.integers(1, 25))))
        try:
            self_train(tiny.config(images, *edits(rng)), out, progress=progress)
        except Stopped:
            continue
        return stops
    self_train(tiny.config(images, *edits(rng)), out)
    return most


def assert_same_results(out: Path, finished: Path) -> None:
    for model in ("iteration-0/teacher", "iteration-1/student", "iteration-1/control"):
        assert tiny.weights(out, model) == tiny.weights(finished, model), model
    for name in ("iteration-1/labels", "iteration-1/selection.parquet"):
        here, there = (_table(run / name) for run in (out, finished))
        assert here.equals(there), name
    assert (out / "verdict.json").read_bytes() == (finished / "verdict.json").read_bytes()


def _table(path: Path) -> Any:
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    columns = [pq.read_table(part).replace_schema_metadata(None) for part in parts]
    return type(columns[0]).from_batches([batch for table in columns for batch in table.to_batches()])


@pytest.mark.parametrize("seed", range(2))
def test_a_chain_ends_as_the_uninterrupted_run(
    images: Path, finished: Path, tmp_path: Path, seed: int
) -> None:
    assert chain(images, tmp_path / "run", np.random.default_rng(seed), 3) > 0
    assert_same_results(tmp_path / "run", finished)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 115))
def test_long_chains_end_as_the_uninterrupted_run(
    images: Path, finished: Path, tmp_path: Path, seed: int
) -> None:
    assert chain(images, tmp_path / "run", np.random.default_rng(seed), 12) > 1
    assert_same_results(tmp_path / "run", finished)
