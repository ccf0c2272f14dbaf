"""An ablation without runs: overrides and their order, wrong input, and the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from html_page import Page
from scipy import stats
from tiny import Capture

from noisystudent import recipes
from noisystudent.ablation import processes, table
from noisystudent.ablation.matrix import Matrix, Overrides, read
from noisystudent.ablation.oracle import oracle
from noisystudent.ablation.output import lines, write
from noisystudent.ablation.table import Score, summary
from noisystudent.config import Config
from noisystudent.errors import InputError
from noisystudent.train.optim import lr_at


@pytest.fixture
def save(tmp_path: Path, recipe: Path) -> Any:
    """`save(cells, key=value)` writes a matrix of the tiny recipe and returns its path."""

    def saved(cells: Any, **keys: Any) -> str:
        path = tmp_path / "study.yaml"
        content = {"recipe": str(recipe), "cells": cells, **keys}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return str(path)

    return saved


def config(matrix: Matrix, name: str) -> Config:
    return next(cell.config for cell in matrix.cells if cell.name == name)


@pytest.mark.parametrize("name", recipes.matrices())
def test_every_shipped_matrix_can_be_read_and_begins_with_a_comment(name: str) -> None:
    matrix = read(name, Overrides())
    assert len(matrix.cells) > 2 and recipes.text(name).startswith("# ")
    assert name not in recipes.names()


# --- overrides ---


def test_the_order_is_recipe_common_cell_command_line(save: Any) -> None:
    cells = {
        "plain": {},
        "own": {
            "student": {"selection": {"threshold": 0.5}, "unlabeled_ratio": 5},
            "data": {"test": "cell"},
        },
    }
    common = {"student": {"selection": {"threshold": 0.4}, "init": "teacher"}, "students": [{}, {}]}
    flags = [("data.test", ["flag"]), ("data.labeled", ["labels"])]
    overrides = Overrides(flags=flags, fields=[("student.unlabeled_ratio", 7)])
    matrix = read(save(cells, common=common), overrides)
    plain, own = (config(matrix, name) for name in cells)
    assert [student.selection.threshold for student in plain.students + own.students] == [0.4] * 2 + [0.5] * 2
    assert {student.unlabeled_ratio for student in plain.students + own.students} == {(7,)}
    assert {student.init for student in own.students} == {"teacher"}
    assert plain.data.test == ("flag",) and own.data.test == ("cell",), (
        "a cell's own images win over those of the flags"
    )
    assert plain.data.labeled == own.data.labeled == ("labels",)
    assert matrix.base.name == "plain" and matrix.seeds == (0,)


def test_within_a_cell_students_override_student(save: Any, recipe: Path) -> None:
    given = {"students": [{}, {"model": {"dropout": 0.3}}], "student": {"model": {"dropout": 0.2}}}
    matrix = read(save({"full": {}, "larger": given, "small": {**given, "of": "student-1"}}), Overrides())
    larger = config(matrix, "larger")
    assert [student.model.dropout for student in larger.students] == [0.2, 0.3]
    own = {**yaml.safe_load(recipe.read_text()), "students": given["students"]}
    own["student"] = {**own["student"], "model": {"dropout": 0.2}}
    assert larger == recipes.resolve({**own, "keep_going": True}), "as of a recipe with these fields"
    of = {cell.name: (cell.of, cell.folder) for cell in matrix.cells}
    assert of == {
        "teacher": ((0, "teacher"), "full"),
        "control": ((1, "control"), "full"),
        "full": ((1, "student"), "full"),
        "larger": ((2, "student"), "larger"),
        "small": ((1, "student"), "larger"),
    }


def test_each_configuration_and_seed_has_one_run_and_the_base_is_first(save: Any) -> None:
    cells = {"a": {"students": 2}, "same as a": {"students": 2, "of": "teacher"}, "b": {}}
    matrix = read(save(cells, base="b"), Overrides(seeds=(3, 1, 3)))
    names = [name for name, _, _ in matrix.runs()]
    assert names == ["b/seed-3", "a/seed-3", "b/seed-1", "a/seed-1"]
    assert matrix.config("a", 1) == dataclasses.replace(config(matrix, "a"), seed=1)
    assert read(save(cells, base="b"), Overrides(only=("same as a",))).chosen() == {"a/seed-0"}


# --- bad input ---


@pytest.mark.parametrize(
    "cells, keys, words",
    [
        ({}, {}, "cells is empty"),
        (None, {}, "cells is empty"),
        (["full"], {}, "cells is ['full']; it must be a mapping"),
        ({"a": 3}, {}, "cell 'a' is 3; it must be a mapping"),
        ({"a": {"studnet": {}}}, {}, "cell 'a': unknown key 'studnet'; did you mean 'student'?"),
        ({"a": {"student": {"modle": 1}}}, {}, "unknown key 'students.0.modle'; did you mean 'model'?"),
        ({"a": {"student": {"selection": {"threshold": 2}}}}, {}, "cell 'a': selection.threshold is 2.0"),
        ({"a": {"student": 3}}, {}, "cell 'a': 3 is given where a mapping of fields is needed"),
        ({"a": {"seed": 3}}, {}, "cell 'a': seed is 3; every cell is run with the seeds of --seeds"),
        (
            {"a": {"of": "student-2"}}, {},
            "of is 'student-2'; choose one of control, student, student-1, teacher",
        ),
        ({"a": {"control": "none", "of": "control"}}, {}, "of is 'control'; choose one of student"),
        ({"a": {}}, {"base": "b"}, "base is 'b', which is not a cell; choose one of a"),
        ({"full": {}}, {"base": "ful"}, "base is 'ful', which is not a cell; did you mean 'full'?"),
        (
            {"a b": {}, "a-B": {}}, {},
            "cell 'a-B' would have the same folder 'a-b' as 'a b'; rename one of them",
        ),
        ({"!": {}}, {}, "cell '!' gives no folder name"),
        ({"control": {}}, {}, "cell 'control': this is the name of the row of the base's control"),
        ({True: {}}, {}, "cell True is not text in YAML; put the name in quotes"),
        ({"a": {}}, {"celsl": 1}, "unknown key 'celsl'; did you mean 'cells'?"),
        ({"a": {}}, {"common": {"of": 1}}, "common: unknown key 'of'"),
        ({"a": {}}, {"recipe": None}, "recipe is missing; write `recipe: NAME` or give --recipe"),
        ({"a": {}}, {"recipe": "dem"}, "no recipe or YAML file 'dem'; did you mean 'demo'?"),
    ],
)  # fmt: skip
def test_a_bad_matrix_is_one_line(
    save: Any, capsys: Capture, cells: Any, keys: Mapping[str, Any], words: str
) -> None:
    assert words in tiny.refused(capsys, 2, "ablate", save(cells, **keys))


def test_a_bad_call_is_one_line(save: Any, images: Path, tmp_path: Path, capsys: Capture) -> None:
    matrix = save({"full": {}})
    where = (*tiny.flags(images), "--out", tmp_path / "out")

    def message(*words: object) -> str:
        return tiny.refused(capsys, 2, "ablate", *words)

    assert message("demo").endswith("is the recipe of one run, without cells; use `noisystudent run demo`")
    assert "no recipe or YAML file 'nothing'" in message("nothing")
    assert "--only ful: no such cell; did you mean 'full'?" in message(matrix, *where, "--only", "ful")
    assert "--processes is 0" in message(matrix, *where, "--processes", "0")
    assert "no field 'teacher.trian.steps'" in message(matrix, *where, "--teacher.trian.steps", "3")
    assert "data.labeled is empty" in message(matrix, "--out", tmp_path / "out")
    assert "--all-labels needs --test" in message(matrix, "--all-labels", images / "pool")
    assert "--all-labels: " in message(matrix, *where, "--all-labels", tmp_path / "nothing")
    no_control = save({"full": {"control": "none"}})
    assert "--all-labels needs a base" in message(no_control, *where, "--all-labels", images / "pool")
    assert "cell 'All labels' would have the same folder" in message(
        save({"full": {}, "All labels": {}}), *where, "--all-labels", images / "pool"
    )
    line = tiny.refused(capsys, 2, "run", matrix, *where)
    assert line.endswith(f"is a matrix of runs, not one run; use `noisystudent ablate {matrix}`")
    assert not list((tmp_path / "out").glob("*/seed-*"))


# --- all labels ---


@pytest.mark.parametrize("schedule", ["cosine", "staircase"])
@pytest.mark.parametrize("length", [{"steps": 40}, {"epochs": 24.0}])
def test_the_oracle_has_the_learning_rate_of_the_control_at_every_step(
    images: Path, schedule: str, length: dict[str, Any]
) -> None:
    train = {"schedule": schedule, "warmup_epochs": 2.3, "decay_epochs": 1.7, "lr": 3.0, **length}
    given = tiny.config(images, *((f"student.train.{name}", value) for name, value in train.items()))
    all_labels = oracle(given, (str(images / "labeled"), str(images / "pool")))
    student, teacher = given.students[-1].train, all_labels.teacher.train
    few, many = 18 / 6, 60 / 18  # steps per epoch: 6 given labels per step; 18 of all labels per step
    total = student.steps or round((student.epochs or 0) * few)
    assert teacher.steps == total and teacher.epochs is None
    for step in range(total):
        assert lr_at(step, teacher, many, total) == pytest.approx(lr_at(step, student, few, total)), step
    assert teacher.batch_size == 18 and all_labels.students == () and all_labels.control == ("none",)
    assert all_labels.data == dataclasses.replace(
        given.data, labeled=(str(images / "labeled"), str(images / "pool")), unlabeled=()
    )
    same = ("model", "augment")
    assert all(getattr(all_labels.teacher, part) == getattr(given.students[-1], part) for part in same)


def test_an_all_labels_without_a_class_folder_is_an_input_error(images: Path) -> None:
    with pytest.raises(InputError, match=r"--all-labels: .*no class folders"):
        oracle(tiny.config(images), (str(images / "pool" / "red"),))


# --- numbers ---

RIGHT = {
    "teacher": (50, 52, 54),
    "control": (60, 62, 61),
    "full": (80, 79, 84),
    "worse": (70, 75, 71),
    "other test": (90, 90, 90),
    "one seed": (77,),
    "all labels": (90, 91, 92),
}  # correct images of 100, for each seed


@pytest.fixture
def content(save: Any, images: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Content of ablation.json if the models have the numbers of correct images in RIGHT."""
    labels = np.arange(100) % 3

    def score(name: str, right: int) -> Score:  # "other test" has other images with the same labels
        return Score("test", np.arange(100) < right, labels, np.full((100, 16), name == "other test", "u1"))

    names = [name for name in RIGHT if name not in ("teacher", "control", "all labels")]
    cells: dict[str, Any] = {name: {} for name in names}
    cells["worse"] = {"student": {"augment": {"pool": False}, "model": {"name": "<i>net</i>"}}}
    flags = [("data.labeled", [str(images / "labeled")]), ("data.test", [str(images / "test")])]
    overrides = Overrides(flags=flags, seeds=(0, 1, 2), all_labels=(str(images / "pool"),))
    matrix = read(save(cells, common={"evaluate": {"resamples": 300}}), overrides)
    scores = {name: {seed: score(name, n) for seed, n in enumerate(all_)} for name, all_ in RIGHT.items()}
    monkeypatch.setattr(table, "_scores", lambda *_: scores)
    failed = {"full/seed-1": "teacher: at chance level <b>here</b>"}
    return summary(matrix, [], failed, "noisystudent ablate <study>")


def test_means_intervals_differences_and_the_gap(content: dict[str, Any]) -> None:
    rows = {cell["name"]: cell for cell in content["cells"]}
    assert list(rows) == list(RIGHT)
    worse = rows["worse"]
    values, differences = np.array([0.70, 0.75, 0.71]), np.array([-0.10, -0.04, -0.13])
    for given, names in ((values, ("top1", "low", "high")), (differences, ("difference",))):
        interval = stats.t.interval(0.95, 2, given.mean(), stats.sem(given))
        names = names if len(names) > 1 else ("difference", "difference_low", "difference_high")
        assert [worse[name] for name in names] == pytest.approx([given.mean(), *interval])
    assert worse["over"] == "seeds" and worse["p_value"] is None
    assert worse["gap_closed"] == pytest.approx((72 - 61) / (91 - 61))
    assert rows["control"]["gap_closed"] == 0 and rows["all labels"]["gap_closed"] == 1
    assert rows["full"]["difference"] is None and rows["full"]["top1"] == pytest.approx(0.81)


def test_one_seed_is_compared_over_its_images(content: dict[str, Any]) -> None:
    row = next(cell for cell in content["cells"] if cell["name"] == "one seed")
    assert (row["n"], row["low"], row["over"]) == (1, None, "images")
    assert row["difference"] == pytest.approx(-0.03) and row["difference_low"] <= -0.05 <= -0.03
    assert row["difference_high"] <= 0 and row["p_value"] == pytest.approx(0.25)
    assert row["gap_closed"] == pytest.approx((77 - 60) / (90 - 60)), "only seeds that all three have"


def test_other_images_are_not_compared(content: dict[str, Any]) -> None:
    row = next(cell for cell in content["cells"] if cell["name"] == "other test")
    assert row["top1"] == pytest.approx(0.9) and row["difference"] is row["gap_closed"] is None


def test_the_table_and_the_page_have_it_all(content: dict[str, Any], tmp_path: Path) -> None:
    header, rows = lines(content)
    assert header == (
        *("cell", "n", "set", "top-1", "95% over seeds", "minus base", "95%", "gap closed", "remarks"),
    )
    worse = next(row for row in rows if row[0] == "worse")
    assert worse[1:4] == ("3", "test", "72.00%") and worse[5] == "-9.00" and worse[7] == "37%"
    html = write(content, tmp_path).read_text(encoding="utf-8")
    page = Page(html)
    assert "<i>net" not in html and "<b>here" not in html and "ablate <study>" in page.text
    assert "teacher: at chance level <b>here</b>" in page.text and "−9.00" in page.text and "37" in page.text
    assert "resamples: 300" in page.text
    dots = [attributes for tag, attributes in page.tags if tag == "u"]
    assert len(dots) == 3 * 4, "one for each seed of teacher, control, worse and all labels"
    assert write(content, tmp_path).read_text(encoding="utf-8") == html
    on_val = write({**content, "sets": ["val"]}, tmp_path).read_text(encoding="utf-8")
    assert "There is no test set. Choices were also made on val" in on_val and "There is no test" not in html


# --- processes ---


def test_each_process_has_its_share_of_threads_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(processes, "worker_count", lambda _workers: 12)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [processes._share(place, 3) for place in range(2)] == [processes._Share(2, 4, None)] * 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [processes._share(place, 16).device for place in range(4)] == ["0", "1", "2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [processes._share(place, 16) for place in (1, 2)] == [
        processes._Share(1, 1, "7"),
        processes._Share(1, 1, "5"),
    ]
