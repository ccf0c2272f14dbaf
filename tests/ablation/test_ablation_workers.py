"""Several calls of `ablate MATRIX --worker` make each stage once, and the table of one call."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import tiny
import yaml
from processes import _start_server
from tiny import Capture

from noisystudent.ablation import workers
from noisystudent.ablation.runs import Library, Run
from noisystudent.run.files import write_json
from noisystudent.run.leases import Leases
from noisystudent.run.lock import lock
from noisystudent.run.rundir import RunDir

FORK = multiprocessing.get_context("forkserver")
CELLS = {
    "full": {},
    "hard": {"student": {"pseudo_label": {"hard": True}}},
    "no teacher": {"teacher": {"train": {"lr": 1e6}}},
}


def test_two_workers_make_each_stage_once_and_the_table_of_one_call(
    images: Path, finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    recipe, out, matrix = tiny.write_recipe(tmp_path / "tiny.yaml"), tmp_path / "out", tmp_path / "study.yaml"
    matrix.write_text(
        yaml.safe_dump({"recipe": str(recipe), "base": "full", "cells": CELLS}, sort_keys=False)
    )
    words = ("ablate", matrix, *tiny.flags(images), "--out", out)
    _start_server()
    logs = [tmp_path / f"{number}.log" for number in range(2)]
    started = [FORK.Process(target=tiny.child, args=((*words, "--worker"), log)) for log in logs]
    for worker in started:
        worker.start()
    for worker in started:
        worker.join(240)
    assert [worker.exitcode for worker in started] == [1, 1], [log.read_text() for log in logs]
    lines = [line.split(": ") for line in (out / "ablation.log").read_text().splitlines()]
    made = Counter(parts[1] for parts in lines if len(parts) > 2 and " steps of " in parts[2])
    assert made == {"teacher": 2, "student-1": 2, "control-1": 1}, "a teacher for each learning rate"
    for name in ("verdict.json", "metrics.jsonl", "iteration-1/evaluation.json"):
        assert (out / "full" / "seed-0" / name).read_bytes() == (finished / name).read_bytes(), name
    by_workers = json.loads((out / "ablation.json").read_text())
    predictions = out / "full" / "seed-0" / "iteration-1" / "student" / "predictions-test.npz"
    predictions.unlink()
    tiny.refused(capsys, 1, *words)  # makes only what has failed, and what was lost
    assert {**json.loads((out / "ablation.json").read_text()), "command": ""} == {**by_workers, "command": ""}
    predictions.write_bytes(b"damaged")
    assert "delete it, and the same command makes it again" in tiny.refused(capsys, 1, *words)


def test_a_worker_that_waits_leaves_nothing_and_each_unit_has_one_owner(tmp_path: Path) -> None:
    """Of the stages of the second run the last one is shared with the first run, and others are free."""
    missing = {name: {(stage, f"{name}-{stage}") for stage in ("control-1", "student-1")} for name in "ab"}
    library = cast(Library, SimpleNamespace(missing=lambda run: missing[run.name] | {("teacher", "0")}))
    first, second = (
        cast(Run, SimpleNamespace(name=name, folder=RunDir(tmp_path / name))) for name in missing
    )
    with Leases(tmp_path / "leases") as one, Leases(tmp_path / "leases") as other:
        units = workers._claim(first, library, one)
        assert len(units) == 4
        files = {*(tmp_path / "leases").iterdir()}
        for _ in range(5):
            assert not workers._claim(second, library, other)
        for unit in units:
            one.release(unit)
        with lock(second.folder.path):  # by a call of `run`
            for _ in range(5):
                assert not workers._claim(second, library, other)
        made = {*(tmp_path / "leases").iterdir()} - files
        assert all(path.name.startswith(".") for path in made), "only the clock of the other worker"
        assert len(workers._claim(second, library, other)) == 4
        for run in (first, second):
            assert not workers._claim(run, library, one), "they share the teacher"


@pytest.mark.parametrize("done", [False, True])
def test_a_run_that_another_worker_made_in_the_end_has_not_failed(done: bool, tmp_path: Path) -> None:
    run = cast(Run, SimpleNamespace(name="full/seed-0", done=done))
    write_json(workers._note(tmp_path, run), {"reason": "the disk was full"})
    assert workers._failed(tmp_path, [run], 0.0) == ({} if done else {"full/seed-0": "the disk was full"})


def test_a_worker_makes_one_run_at_a_time(capsys: Capture) -> None:
    line = tiny.refused(capsys, 2, "ablate", "ablation", "--worker", "--processes", 2)
    assert "--processes is 2, and --worker is given" in line
