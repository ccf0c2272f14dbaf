"""A whole ablation on tiny images: shared stages are made once, and results are those of single runs."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import yaml
from html_page import Page
from tiny import Capture

from noisystudent.ablation.matrix import Overrides, read
from noisystudent.ablation.study import study

FORK = multiprocessing.get_context("forkserver")

CELLS: dict[str, Any] = {
    "full": {},
    "hard <i>labels</i>": {"student": {"pseudo_label": {"hard": True}}},
    "one of two": {"students": 2, "of": "student-1"},
    "two": {"students": 2},
    "no teacher": {"teacher": {"train": {"lr": 1e6}}},
}
BASE = {"cells": {"full": {}, "hard": CELLS["hard <i>labels</i>"]}}
HARD = "hard-i-labels-i"
"""Folder of a cell with the same configuration as the cell `hard` of BASE."""


@pytest.fixture(scope="module", autouse=True)
def _server_that_has_imported_all() -> None:
    """Preload the server, so that its processes start at once. Otherwise each would import for seconds."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    FORK.set_forkserver_preload(["noisystudent.self_training", "noisystudent.ablation.study", "pytest"])


def write(path: Path, content: dict[str, Any]) -> Path:
    """Write a matrix of the tiny recipe to `path`, and the recipe beside it."""
    recipe = tiny.write_recipe(path.with_name("tiny.yaml"))
    path.write_text(yaml.safe_dump({"recipe": str(recipe), **content}, sort_keys=False))
    return path


def table(out: Path) -> dict[str, dict[str, Any]]:
    """Cell name -> row of ablation.json."""
    return {cell["name"]: cell for cell in json.loads((out / "ablation.json").read_text())["cells"]}


def trainings(log: Path) -> Counter[str]:
    """Number of trainings of each model in all runs."""
    lines = [line.split(": ") for line in log.read_text().splitlines()]
    return Counter(parts[1] for parts in lines if len(parts) > 2 and " steps of " in parts[2])


def left_over(out: Path) -> list[Path]:
    return [path for path in out.rglob(".*.partial") if "checkpoint" not in path.parts]


@pytest.fixture(scope="module")
def ablated(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of CELLS and all labels, one seed, in one process. Tests must not change it, but copy it."""
    out = tmp_path_factory.mktemp("ablated") / "out"
    matrix = write(out.with_name("study.yaml"), {"base": "full", "cells": CELLS})
    truth = ("--all-labels", images / "labeled", images / "pool")
    assert tiny.call("ablate", matrix, *tiny.flags(images), "--out", out, *truth) == 1, "a cell fails"
    return out


# --- what is shared ---


def test_equal_stages_are_made_once(ablated: Path) -> None:
    counts = trainings(ablated / "ablation.log")
    # Three teachers: of most cells, of `no teacher`, of all labels. `full` and `two` share a first student.
    assert counts == {"teacher": 3, "student-1": 2, "control-1": 1, "student-2": 1, "control-2": 1}
    for stage in ("data", "iteration-0/teacher", "iteration-1/labels", "iteration-1/control"):
        first, second = (ablated / cell / "seed-0" / stage / "stage.json" for cell in ("full", HARD))
        assert first.samefile(second), stage
    parts = [ablated / cell / "seed-0" / "iteration-1" / "selection.parquet" for cell in ("full", HARD)]
    assert parts[0].samefile(parts[1])
    assert left_over(ablated) == []


def test_each_cell_equals_a_single_run(ablated: Path, finished: Path, images: Path, tmp_path: Path) -> None:
    hard = tmp_path / "hard"
    tiny.run(tiny.config(images, ("student.pseudo_label.hard", True)), hard)
    for alone, cell in ((finished, "full"), (hard, HARD)):
        run = ablated / cell / "seed-0"
        for model in ("iteration-0/teacher", "iteration-1/student", "iteration-1/control"):
            assert tiny.weights(run, model) == tiny.weights(alone, model), (cell, model)
        for name in ("verdict.json", "metrics.jsonl", "iteration-1/evaluation.json"):
            assert (run / name).read_bytes() == (alone / name).read_bytes(), (cell, name)


def test_cells_of_equal_configuration_share_a_run(ablated: Path) -> None:
    cells = table(ablated)
    assert not (ablated / "two").exists()
    run = ablated / "one-of-two" / "seed-0"
    assert {cells[name]["folder"] for name in ("one of two", "two")} == {"one-of-two"}
    rows = {"one of two": (1, "student"), "two": (2, "student"), "full": (1, "student")}
    for name, (index, role) in rows.items():
        home = ablated / "full" / "seed-0" if name == "full" else run
        models = json.loads((home / f"iteration-{index}" / "evaluation.json").read_text())["models"]
        assert cells[name]["top1"] == models[role]["test"]["top1"] and cells[name]["of"] == f"{role}-{index}"
        assert cells[name]["set"] == "test" and cells[name]["n"] == 1
    models = {name: (cells[name]["of"], cells[name]["folder"]) for name in ("teacher", "control")}
    assert models == {"teacher": ("teacher", "full"), "control": ("control-1", "full")}


def test_a_cell_that_fails_has_a_reason_and_the_others_are_finished(
    ablated: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    cells = table(ablated)
    reason = cells["no teacher"]["failed"]["0"]
    assert "teacher" in reason and "\n" not in reason and cells["no teacher"]["top1"] is None
    assert all(cell["n"] == 1 and not cell["failed"] for name, cell in cells.items() if name != "no teacher")
    rows = list(csv.DictReader((ablated / "ablation.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["name"] for row in rows] == ["teacher", "control", *CELLS, "all labels"]
    assert reason in rows[6]["failed"] and rows[6]["top1"] == "" and float(rows[2]["top1"]) > 0.5
    shutil.copytree(ablated.parent, tmp_path / "copy")
    out = tmp_path / "copy" / "out"
    words = ("ablate", out.with_name("study.yaml"), *tiny.flags(images), "--out", out)
    assert tiny.call(*words, "--only", "no teacher") == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "noisystudent: 1 of 4 runs failed (no-teacher/seed-0); see the table above"
    ]
    (line,) = (line for line in printed.out.splitlines() if line.startswith("no teacher "))
    assert f"seed 0 failed: {reason}" in line


def test_a_second_call_makes_only_a_changed_cell(ablated: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(ablated.parent, tmp_path / "copy")
    out = tmp_path / "copy" / "out"
    before = (out / "ablation.log").read_text()
    changed = {name: overrides for name, overrides in CELLS.items() if name != "no teacher"}
    matrix = write(out.with_name("study.yaml"), {"base": "full", "cells": changed})
    words = ("ablate", matrix, *tiny.flags(images), "--out", out)
    assert tiny.call(*words) == 0
    assert trainings(out / "ablation.log") == trainings(ablated / "ablation.log")
    assert len((out / "ablation.log").read_text()) < len(before) + 400, "every run was opened again"
    changed["two"] = {"students": 2, "student": {"selection": {"threshold": 0.4}}}
    write(matrix, {"base": "full", "cells": changed})
    assert tiny.call(*words) == 0
    more = trainings(out / "ablation.log") - trainings(ablated / "ablation.log")
    assert more.keys() == {"student-1", "student-2"} and (out / "two" / "seed-0").is_dir()


# --- pages ---


def test_the_page_is_one_file_and_escapes_names(ablated: Path) -> None:
    html = (ablated / "ablation.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.sections == ["differences", "table", "seeds", "cells", "command"]
    assert "hard <i>labels</i>" in page.text and "<i>labels" not in html
    assert "<script" not in html and "http" not in html.replace("http-equiv", "")
    assert "hard: true" in page.text
    assert "the control, on " in page.text and "no teacher, seed 0, failed: teacher" in page.text
    styles = [attributes.get("style") or "" for tag, attributes in page.tags if tag == "span"]
    assert sum("left" in style for style in styles) == 7


# --- all labels ---


def test_all_labels_is_the_control_on_more_labels(ablated: Path) -> None:
    (oracle,) = (path for path in (ablated.parent / "ceilings").iterdir() if path.is_dir())
    control = ablated / "full" / "seed-0"
    logged = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (oracle / "iteration-0" / "teacher", control / "iteration-1" / "control")
    ]
    rates = [{line["step"]: line["lr"] for line in lines if "lr" in line} for lines in logged]
    assert rates[0] == pytest.approx(rates[1]) and len(rates[0]) >= 3
    log = (ablated / "ablation.log").read_text()
    same = ": resnet8_16, 12 steps of 18 labelled and 0 pool images, 16 pixels"
    assert f"all-labels/seed-0: teacher{same}" in log and f"full/seed-0: control-1{same}" in log
    manifest = tiny.manifest(oracle)
    assert sum(row["set"] == "labeled" for row in manifest) == 18 + 42
    cells = table(ablated)
    low, high = cells["control"]["top1"], cells["all labels"]["top1"]
    for cell in cells.values():
        if high > low and cell["n"]:
            assert cell["gap_closed"] == pytest.approx((cell["top1"] - low) / (high - low))
        else:
            assert cell["gap_closed"] is None


# --- stopped and killed ---


def assert_same(out: Path, ablated: Path) -> None:
    for cell, other in (("full", "full"), ("hard", HARD)):
        run, reference = out / cell / "seed-0", ablated / other / "seed-0"
        for model in ("iteration-0/teacher", "iteration-1/student", "iteration-1/control"):
            assert tiny.weights(run, model) == tiny.weights(reference, model), (cell, model)
        for name in ("verdict.json", "metrics.jsonl", "iteration-1/evaluation.json"):
            assert (run / name).read_bytes() == (reference / name).read_bytes(), (cell, name)
    assert left_over(out) == []


class Killed(BaseException):
    """Ends a call at once, like a kill: no handler of errors catches it."""


class Fragile(tiny.Remembered):
    """Progress that raises `Killed` when a line with the text `last` is printed."""

    last = ""

    def say(self, line: str) -> None:
        super().say(line)
        if self.last and self.last in line:
            raise Killed


def test_killed_and_resumed_equals_uninterrupted(ablated: Path, images: Path, tmp_path: Path) -> None:
    out, matrix = tmp_path / "out", write(tmp_path / "study.yaml", BASE)
    flags = [(f"data.{name}", [str(images / folder)]) for name, folder in tiny.SETS.items()]
    study_matrix = read(str(matrix), Overrides(flags=flags))
    printed: list[str] = []
    for last in (
        "full/seed-0: student-1: resnet8_16",
        "full/seed-0: control-1: val",
        "hard/seed-0: data, teacher, labels-1, selection-1, control-1: taken over from full/seed-0",
        "hard/seed-0: student-1: resnet8_16",
        "",
    ):
        progress = Fragile()
        progress.last = last
        with pytest.raises(Killed) if last else nullcontext():
            study(study_matrix, out, processes=1, command="", progress=progress)
        printed += progress.lines
    assert_same(out, ablated)
    made = Counter(line.split(": ")[1] for line in printed if " steps of " in line)
    assert made == {"teacher": 1, "student-1": 4, "control-1": 1}, "each student was killed once"


def killed(words: Sequence[object], log: Path, delay: float) -> int | None:
    """Run a command in its own process, kill it after `delay` seconds, and return the exit code."""
    process = FORK.Process(target=tiny.child, args=(words, log))
    process.start()
    process.join(delay)
    process.kill()
    process.join()
    return process.exitcode


@pytest.mark.slow
def test_processes_whose_parent_is_killed_at_any_moment(ablated: Path, images: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    words = ("ablate", write(tmp_path / "study.yaml", BASE), *tiny.flags(images), "--out", out)
    moments = np.random.default_rng(0).uniform(3, 9, size=6)
    codes = [killed((*words, "--processes", "2"), log, moment) for moment in (*moments, 300)]
    assert codes[-1] == 0 and set(codes) <= {0, -signal.SIGKILL}, f"{codes}: {log.read_text()}"
    assert_same(out, ablated)


def stop_when(path: Path, done: threading.Event) -> None:
    while not path.exists() and not done.is_set():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_two_processes_stopped_and_resumed_equal_one(
    ablated: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, done = tmp_path / "out", threading.Event()
    matrix = write(tmp_path / "study.yaml", BASE)
    words = ("ablate", matrix, *tiny.flags(images), "--out", out, "--seeds", "0", "2", "--processes", "2")
    first = out / "full" / "seed-0" / "iteration-1" / "student" / "checkpoint"
    watch = threading.Thread(target=stop_when, args=(first, done), daemon=True)
    watch.start()
    assert tiny.call(*words) == 75
    assert tiny.one_line(capsys).endswith("stopped by SIGTERM; run the same command again to resume")
    watch.join()
    assert tiny.call(*words) == 0
    assert_same(out, ablated)
    for seed in (0, 2):
        teachers = [out / cell / f"seed-{seed}" / "iteration-0/teacher/stage.json" for cell in BASE["cells"]]
        assert teachers[0].samefile(teachers[1])
    cells = table(out)
    assert cells["hard"]["n"] == 2 and cells["hard"]["over"] == "seeds"
    assert cells["hard"]["per_seed"]["0"] == table(ablated)["hard <i>labels</i>"]["top1"]
