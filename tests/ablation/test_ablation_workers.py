"""Several calls of `ablate MATRIX --worker` make each stage once, and the table of one call."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from pathlib import Path

import tiny
import yaml
from processes import _start_server
from tiny import Capture

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
    workers = [FORK.Process(target=tiny.child, args=((*words, "--worker"), log)) for log in logs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
    assert [worker.exitcode for worker in workers] == [1, 1], [log.read_text() for log in logs]
    lines = [line.split(": ") for line in (out / "ablation.log").read_text().splitlines()]
    made = Counter(parts[1] for parts in lines if len(parts) > 2 and " steps of " in parts[2])
    assert made == {"teacher": 2, "student-1": 2, "control-1": 1}, "a teacher for each learning rate"
    for name in ("verdict.json", "metrics.jsonl", "iteration-1/evaluation.json"):
        assert (out / "full" / "seed-0" / name).read_bytes() == (finished / name).read_bytes(), name
    by_workers = json.loads((out / "ablation.json").read_text())
    tiny.refused(capsys, 1, *words)  # makes only what has failed
    assert {**json.loads((out / "ablation.json").read_text()), "command": ""} == {**by_workers, "command": ""}


def test_a_worker_makes_one_run_at_a_time(capsys: Capture) -> None:
    line = tiny.refused(capsys, 2, "ablate", "ablation", "--worker", "--processes", 2)
    assert "--processes is 2, and --worker is given" in line
