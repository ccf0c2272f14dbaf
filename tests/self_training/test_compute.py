"""The control of the same compute has as many image passes as the whole run, counted independently here."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from noisystudent.config import FinetuneConfig, ModelConfig
from noisystudent.config.run import control_from_teacher
from noisystudent.run.build import build_graph
from noisystudent.run.rundir import RunDir

LABELS, POOL = 18, 42  # of the tiny images, all readable and different
BOTH = ("control", ["same_steps", "same_compute"])


def steps_of(run: Path, model: str) -> int:
    lines = (run / model / "metrics.jsonl").read_text().splitlines()
    return int(max(json.loads(line)["step"] for line in lines))


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compute") / "run"
    tiny.run(tiny.config(images, BOTH), out)
    return out


def test_the_plain_loop(run: Path) -> None:
    # 12 steps of 6 labels; a third of 42; 12 steps of 6 + 12 images; divided by 18 images per step.
    passes = 12 * 6 + POOL / 3 + 12 * 18
    assert steps_of(run, "iteration-1/control-compute") == round(passes / 18) == 17
    assert steps_of(run, "iteration-1/control") == 12


@pytest.mark.parametrize(
    "fields, passes, rows",
    [
        # Two students, of 3.5 epochs: 18 / 6 * 3.5 = 10.5 steps, which Python rounds to 10.
        (
            [("students", 2), ("student.train", {"epochs": 3.5})],
            12 * 6 + 2 * (POOL / 3 + 10 * 18),
            18,
        ),
        # Two teachers, mirrored views: four forward passes a pool image. Labels in the step: 12 rows of 18.
        (
            [("ensemble", 2), ("student.pseudo_label", {"flip": True, "on_the_fly": True})],
            2 * 12 * 6 + (POOL + 12 * 12) * 4 / 3 + 12 * 18,
            18,
        ),
        # Three teachers of folds, each as long as the first teacher.
        ([("folds", 3)], 4 * 12 * 6 + POOL / 3 + 12 * 18, 18),
        # A filter, which labels once; students on the pool alone, whose control has the same rows.
        (
            [("filter", {**tiny.RECIPE["teacher"]}), ("student.joint", False)],
            2 * 12 * 6 + 2 * POOL / 3 + 12 * 18,
            18,
        ),
        # A fine-tuning of 8 steps of 6 is in the run and in the control.
        ([("student.finetune", {"steps": 8})], 12 * 6 + POOL / 3 + 12 * 18, 18),
        # Steps 0 to 5 have stored labels, 6 to 8 those of the moving average, and 9 to 11 no pool image.
        (
            [
                ("student.pseudo_label", {"teacher": "ema", "ema_start": 0.5}),
                ("student.train.label_tail", 0.25),
            ],
            12 * 6 + (POOL + 3 * 12) / 3 + 12 * 18,
            18,
        ),
        # Heads alone: a row of features counts as an image.
        ([("teacher.train.features", True)], 12 * 6 + POOL / 3 + 12 * 18, 18),
        # A head, then a student on images: the features of 18 + 12 + 12 + 42 images count, mirrored too.
        (
            [("teacher.train.features", True), ("student.train.features", False)],
            (LABELS + 24 + POOL) * 2 / 3 + 12 * 18,
            18,
        ),
    ],
    ids=["epochs", "ensemble", "folds", "filter", "finetune", "moving average", "heads", "a head first"],
)
def test_everything_that_sees_images_counts(
    images: Path, tmp_path: Path, fields: list[tuple[str, Any]], passes: float, rows: int
) -> None:
    lines = tiny.run(tiny.config(images, ("control", "same_compute"), *fields), tmp_path / "run")
    (line,) = (line for line in lines if re.match(r"control-compute-\d: .* steps of ", line))
    assert not any(line.startswith("control-1") for line in lines)
    assert f", {round(passes / rows)} steps of {rows} labelled and 0 pool images" in line


def test_the_verdict_names_both_and_every_model_is_evaluated(run: Path) -> None:
    verdict = json.loads((run / "verdict.json").read_text())
    assert list(verdict["comparisons"]) == ["teacher", "control", "control-compute"]
    for words in ("the control trained only on labels (", "the control of the same compute ("):
        assert words in verdict["sentence"]
    models = json.loads((run / "iteration-1" / "evaluation.json").read_text())["models"]
    assert list(models) == ["student", "control", "control-compute"]


def test_the_student_and_the_other_control_do_not_change(run: Path, finished: Path) -> None:
    for model in ("iteration-0/teacher", "iteration-1/student", "iteration-1/control"):
        assert tiny.weights(run, model) == tiny.weights(finished, model), model
    assert tiny.weights(run, "iteration-1/control-compute") != tiny.weights(run, "iteration-1/control")


@pytest.mark.parametrize(
    "fields, again",
    [
        ([("teacher.train.steps", 13), ("student.train.steps", 12)], True),
        ([("ensemble", 2)], True),
        ([("student.pseudo_label.flip", True)], True),
        ([("student.pseudo_label.on_the_fly", True)], True),
        ([("student.selection.threshold", 0.5)], False),
        ([("student.pseudo_label.batch_size", 4)], False),
        ([("teacher.train.log_steps", 1)], False),
    ],
)
def test_it_is_trained_again_if_the_passes_may_differ(
    images: Path, tmp_path: Path, fields: list[tuple[str, Any]], again: bool
) -> None:
    graphs = [
        build_graph(tiny.config(images, BOTH, *more), tiny.LISTING, RunDir(tmp_path)) for more in ((), fields)
    ]
    steps, compute = zip(*(graph.iterations[0].controls for graph in graphs), strict=True)
    assert (compute[0].training.fingerprint != compute[1].training.fingerprint) is again
    assert steps[0].training.fingerprint == steps[1].training.fingerprint


def test_no_control_starts_from_weights_that_have_seen_the_pool(images: Path, tmp_path: Path) -> None:
    two = [("students", [{}, {}]), ("student.init", "teacher"), BOTH]
    plain, other = (
        build_graph(
            tiny.config(images, *two, ("student.selection.threshold", t)), tiny.LISTING, RunDir(tmp_path)
        )
        for t in (0.4, 0.5)
    )
    for one, same in zip(plain.iterations[1].controls, other.iterations[1].controls, strict=True):
        assert one.training.fingerprint == same.training.fingerprint
    out = tmp_path / "run"
    tiny.run(tiny.config(images, *two, ("student.train.lr", 0.0)), out)
    teacher, control, compute = (
        load_file(out / model / "model.safetensors")
        for model in ("iteration-0/teacher", "iteration-2/control", "iteration-2/control-compute")
    )
    learnt = [name for name in teacher if name.endswith("weight")]
    assert all(torch.equal(teacher[name], control[name]) for name in learnt), "from the first teacher"
    assert not all(torch.equal(teacher[name], compute[name]) for name in learnt), "from scratch"


def test_a_control_of_another_network_than_the_first_teachers_starts_from_scratch(images: Path) -> None:
    config = tiny.config(images, ("students", [{}, {}]), ("student.init", "teacher"))
    assert control_from_teacher(config)
    larger = dataclasses.replace(config.students[1], model=ModelConfig(name="resnet8_32"))
    assert not control_from_teacher(dataclasses.replace(config, students=(config.students[0], larger)))
    tagged = dataclasses.replace(config.students[1], model=ModelConfig(name="resnet8_16.tag"))
    assert control_from_teacher(dataclasses.replace(config, students=(config.students[0], tagged)))
    scratch = dataclasses.replace(config.students[1], init="scratch")
    assert not control_from_teacher(dataclasses.replace(config, students=(config.students[0], scratch)))


@pytest.mark.parametrize(
    ("teacher", "student", "from_teacher"),
    [(True, True, True), (True, False, True), (False, True, False), (False, False, True)],
)
def test_a_head_on_features_starts_only_from_one_on_the_same(
    images: Path, teacher: bool, student: bool, from_teacher: bool
) -> None:
    """The features are those of the first weights, and a teacher that is trained on images has others."""
    fields = [("teacher.train.features", teacher), ("student.train.features", student)]
    config = tiny.config(images, *fields, ("student.init", "teacher"))
    assert control_from_teacher(config) is from_teacher
    tuned = dataclasses.replace(config.teacher, finetune=FinetuneConfig(steps=2))
    config = dataclasses.replace(config, teacher=tuned)
    assert control_from_teacher(config) is (from_teacher and not student), "its features are others, too"
    other = ("student.model.resolution", 2 * tiny.SIDE)
    config = tiny.config(images, *fields, ("student.init", "teacher"), other)
    assert control_from_teacher(config) is (from_teacher and not student)


def test_a_control_that_is_not_wanted_any_more_is_put_aside(images: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    lines = tiny.run(tiny.config(images), out)
    assert not (out / "iteration-1" / "control-compute").exists()
    assert any(line.startswith("control-compute-1: not in the configuration any more") for line in lines)
