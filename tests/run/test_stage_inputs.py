"""What the output of a stage depends on changes its fingerprint, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from noisystudent.run.build import build_graph
from noisystudent.run.rundir import RunDir

Fields = list[tuple[str, Any]]

BOTH = ("control", ["same_steps", "same_compute"])
HEADS = ("teacher.train.features", True)  # students inherit it
FOLDS = ("folds", 3)
FINETUNE = ("teacher.finetune", {"steps": 3, "lr": 0.1})

# What is there already, what is changed then, and stages that are made again.
CHANGES: dict[str, tuple[Fields, Fields, set[str]]] = {
    "the steps of passes over the pool": (
        [("student.train", {"pool_epochs": 2.0})],
        [("student.joint", False)],
        {"student-1", "control-1"},
    ),
    "a teacher of weight 0 labels nothing": (
        [("ensemble", 2), BOTH],
        [("teacher_weights", [1.0, 0.0])],
        {"labels-1", "control-compute-1"},
    ),
    "cached views of a backbone": (
        [HEADS, ("student.train.features", False), ("student.augment.views", 0), BOTH],
        [("teacher.augment.views", 9)],
        {"control-compute-1"},
    ),
    "heads of several weight decays": (
        [HEADS, FOLDS],
        [("choose", False)],
        {"fold-1", "fold-2", "fold-3", "out-of-fold"},
    ),
    "only heads without fine-tuning have several": (
        [HEADS, FOLDS],
        [FINETUNE, ("student.finetune", None)],
        {"fold-1", "out-of-fold"},
    ),
    "the precision of features": ([HEADS], [("teacher.train.precision", "bf16")], {"embeddings", "teacher"}),
    "all teachers are judged": ([("students", 0)], [("ensemble", 3)], {"judgement"}),
    "by their weights": (
        [("students", 0), ("ensemble", 2)],
        [("teacher_weights", [0.7, 0.3])],
        {"judgement"},
    ),
    "noise is drawn for a batch": (
        [("student.pseudo_label.noise", True)],
        [("student.pseudo_label.batch_size", 4)],
        {"labels-1"},
    ),
}


@pytest.mark.parametrize(("before", "change", "again"), CHANGES.values(), ids=CHANGES)
def test_what_a_stage_depends_on_changes_it(
    images: Path, tmp_path: Path, before: Fields, change: Fields, again: set[str]
) -> None:
    first, second = (
        {
            stage.name: stage.fingerprint
            for stage in build_graph(tiny.config(images, *given), tiny.LISTING, RunDir(tmp_path)).stages()
        }
        for given in (before, before + change)
    )
    assert again <= first.keys()
    assert {name for name in again if first[name] == second[name]} == set()


NO_POOL = {"folds": 2, "choose": True, "control": ["same_steps", "same_compute"], "ensemble": 2}


def test_another_pool_trains_nothing_again_that_has_no_pool_image(images: Path, tmp_path: Path) -> None:
    config = tiny.config(images, *NO_POOL.items())
    first, second = (
        {stage.name: stage.fingerprint for stage in build_graph(config, listing, RunDir(tmp_path)).stages()}
        for listing in (tiny.LISTING, tiny.LISTING._replace(pool="more"))
    )
    same = {"fold-1", "fold-2", "out-of-fold", "teacher", "teacher-2", "control-1"}
    assert {name for name in first if first[name] == second[name]} == same
    other = build_graph(config, tiny.LISTING._replace(labeled="more"), RunDir(tmp_path))
    assert {stage.name for stage in other.stages() if stage.fingerprint == first[stage.name]} == set()


def test_the_batch_size_of_labels_without_noise_changes_nothing(images: Path, tmp_path: Path) -> None:
    one, other = (
        [stage.fingerprint for stage in build_graph(config, tiny.LISTING, RunDir(tmp_path)).stages()]
        for config in (tiny.config(images), tiny.config(images, ("student.pseudo_label.batch_size", 4)))
    )
    assert one == other
