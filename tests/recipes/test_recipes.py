"""Recipes: every shipped one loads, those of the paper have its values, and overrides take precedence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from noisystudent import recipes
from noisystudent.config import (
    Config,
    DataConfig,
    FinetuneConfig,
    FirstTeacherConfig,
    LearnerConfig,
    StudentConfig,
    TeacherConfig,
)
from noisystudent.errors import InputError
from noisystudent.metrics import guards
from noisystudent.train.optim import peak_lr


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_loads_and_begins_with_its_command(name: str) -> None:
    config = recipes.load(name)
    assert config.name == name and config.students
    lines = recipes.text(name).splitlines()
    comment = [line for line in lines[:8] if line.startswith("#")]
    assert len(comment) >= 5 and comment[1] == "#" and comment[2].startswith("#   ")
    assert any(word in comment[2] for word in ("noisystudent ", "python benchmarks/"))


@pytest.mark.parametrize("name", recipes.names())
def test_a_dumped_configuration_loads_as_an_equal_one(name: str, tmp_path: Path) -> None:
    config = recipes.load(name)
    (tmp_path / "config.yaml").write_text(recipes.dump(config), encoding="utf-8")
    assert recipes.load(str(tmp_path / "config.yaml")) == config


def test_defaults_dump_and_load() -> None:
    assert recipes.resolve(yaml.safe_load(recipes.dump(Config()))) == Config()


# --- the paper ---


def test_imagenet_l2_is_the_papers_run() -> None:
    """Xie et al., CVPR 2020, §3.1; learning rate and smoothing as in the published code."""
    config = recipes.load("imagenet-l2")
    assert config.data.resolution == 475 and config.control == ("none",)
    teacher, students = config.teacher, config.students
    assert (teacher.model.name, teacher.model.resolution) == ("tf_efficientnet_b7", 600)
    assert [student.model.name for student in students] == ["tf_efficientnet_l2"] * 3
    assert [student.unlabeled_ratio for student in students] == [(14,), (14,), (28,)]
    assert not any(student.selection.reassign for student in students), "the filter selects for all"
    for student in students:
        assert student.init == "scratch" and student.model.resolution == 475
        rule = student.selection
        assert (rule.mode, rule.threshold, rule.per_class, rule.duplicate) == ("paper", 0.3, 130_000, True)
        assert (student.pseudo_label.temperature, student.pseudo_label.hard) == (1.0, False)
    for learner in (teacher, *students):
        train, augment = learner.train, learner.augment
        assert (train.epochs, train.steps, train.batch_size) == (350, None, 2048)
        assert (train.optimizer, train.momentum, train.weight_decay) == ("rmsprop_tf", 0.9, 1e-5)
        assert peak_lr(train) == pytest.approx(0.128)
        assert (train.schedule, train.decay_epochs, train.warmup_epochs) == ("staircase", 2.4, 5)
        assert (train.label_smoothing, train.ema_decay, train.normalization) == (0.1, 0.9999, "joint")
        assert (learner.model.dropout, learner.model.stochastic_depth) == (0.5, 0.2)
        assert (augment.crop, augment.flip, augment.randaugment) == ("inception", True, "rand-m27-n2")
        assert augment.labeled and augment.pool and learner.model.noise_labeled and learner.model.noise_pool
    assert config.filter is not None
    first = config.filter
    assert (first.model.name, first.model.resolution) == ("tf_efficientnet_b0", 224)
    assert (first.train.epochs, first.train.decay_epochs) == (700, 4.8)
    assert (first.model.dropout, first.augment.randaugment) == (0.2, None)


def test_svhn_is_the_authors_published_run() -> None:
    """The official repository's run.sh: 128 + 640 images, 109,474 steps, no filtering."""
    config = recipes.load("svhn")
    assert config.data.resolution == 32 and len(config.students) == 1
    student = config.students[0]
    assert student.unlabeled_ratio[0] * student.train.batch_size == 640
    assert (student.selection.mode, student.pseudo_label.temperature) == ("all", 1.0)
    for learner in (config.teacher, student):
        train, augment, model = learner.train, learner.augment, learner.model
        assert (model.name, model.dropout, model.stochastic_depth) == ("efficientnet_b0_32px", 0.2, 0.2)
        assert (train.steps, train.batch_size, train.warmup_epochs) == (109_474, 128, 5)
        assert peak_lr(train) == pytest.approx(0.008)
        assert (train.schedule, train.decay_epochs) == ("staircase", 1.372)
        assert (train.weight_decay, train.label_smoothing, train.ema_decay) == (1e-4, 0.1, 0.9999)
        assert train.normalization == "official"
        assert (augment.crop, augment.flip) == ("pad", False)
        assert (augment.randaugment, augment.cutout) == ("rand-m5-n2", 16)


@pytest.mark.slow
def test_the_papers_run_takes_steps_at_a_tiny_size(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filter, B7, three students with reassigned labels: the same stages, with a network of 32 pixels."""
    # A model of two steps is at chance level, where the guards stop a run.
    monkeypatch.setattr(guards, "fault", lambda *_, **__: None)
    small = {
        "model.name": "test_efficientnet",
        "model.resolution": 32,
        "train.steps": 2,
        "train.batch_size": 2,
    }
    given = [
        (f"{learner}.{key}", value)
        for learner in ("teacher", "student", "filter")
        for key, value in small.items()
    ]
    given += [(f"data.{field}", str(images / name)) for field, name in tiny.SETS.items()]
    given += [
        ("data.workers", 0),
        ("device", "cpu"),
        ("data.resolution", 32),
        ("student.selection.per_class", 4),
    ]
    given += [("student.selection.threshold", 0.0)]
    given += [("student.finetune", {"steps": 2, "resolution": 48, "frozen_blocks": 2})]
    config = recipes.load("imagenet-l2", given)
    tiny.run(config, tmp_path)
    hashes, labels = [], []
    for index in (1, 2, 3):
        table = (
            pq.read_table(tmp_path / f"iteration-{index}" / "selection.parquet").sort_by("row").to_pydict()
        )
        hashes.append({h: n for h, n in zip(table["content_hash"], table["repeats"], strict=True)})
        labels.append(table["confidence"])
        selection = json.loads((tmp_path / f"iteration-{index}" / "evaluation.json").read_text())["selection"]
        assert 0 < selection["total"] <= 12 and selection["total"] % 4 == 0
    assert hashes[0] == hashes[1] == hashes[2], "the selection of the filter is kept"
    assert labels[0] != labels[1] != labels[2], "with the labels of each new teacher"
    first = pq.read_table(tmp_path / "iteration-1" / "filter-selection.parquet").sort_by("row").to_pydict()
    assert dict(zip(first["content_hash"], first["repeats"], strict=True)) == hashes[0]
    sentence = json.loads((tmp_path / "verdict.json").read_text())
    assert sentence["improved"] is not True, "without a control nothing is called an improvement"
    assert not (tmp_path / "iteration-3" / "control").exists()


# --- inheritance and overrides ---

RAW: dict[str, Any] = {
    "teacher": {"model": {"name": "wrn28_2", "dropout": 0.1}, "train": {"epochs": 30, "lr": 0.5}},
    "student": {"model": {"dropout": 0.4}, "selection": {"threshold": 0.6}},
    "students": [{}, {"model": {"name": "wrn28_10"}, "selection": {"threshold": 0.7}}],
}


def test_students_inherit_from_student_and_that_from_the_teacher() -> None:
    first, second = recipes.resolve(RAW).students
    assert (first.model.name, second.model.name) == ("wrn28_2", "wrn28_10")
    assert first.model.dropout == second.model.dropout == 0.4
    assert first.train == second.train == recipes.resolve(RAW).teacher.train
    assert (first.selection.threshold, second.selection.threshold) == (0.6, 0.7)


def test_the_command_line_takes_precedence() -> None:
    config = recipes.resolve(RAW, [("student.selection.threshold", 0.2)])
    assert [student.selection.threshold for student in config.students] == [0.2, 0.2]
    config = recipes.resolve(RAW, [("students.1.selection.threshold", 0.2)])
    assert [student.selection.threshold for student in config.students] == [0.6, 0.2]
    config = recipes.resolve(RAW, [("teacher.train.lr", 0.9)])
    assert [learner.train.lr for learner in (config.teacher, *config.students)] == [0.9] * 3
    config = recipes.resolve(RAW, [("teacher.train.lr", 0.9), ("student.train.lr", 0.3)])
    assert [learner.train.lr for learner in (config.teacher, *config.students)] == [0.9, 0.3, 0.3]


def test_a_number_of_students_replaces_the_list() -> None:
    config = recipes.resolve(RAW, [("students", 3), ("students.2.unlabeled_ratio", 5)])
    assert [student.unlabeled_ratio for student in config.students] == [(1,), (1,), (5,)]
    assert {student.model.name for student in config.students} == {"wrn28_2"}
    assert recipes.resolve(RAW, [("students", 0)]).students == ()


def test_the_later_of_two_durations_is_used() -> None:
    config = recipes.resolve(RAW, [("teacher.train.steps", 7)])
    assert (config.teacher.train.steps, config.teacher.train.epochs) == (7, None)
    assert {(s.train.steps, s.train.epochs) for s in config.students} == {(7, None)}
    config = recipes.resolve(RAW, [("student.train.steps", 7)])
    assert (config.teacher.train.epochs, config.students[0].train.steps) == (30, 7)
    assert config.students[0].train.epochs is None
    with pytest.raises(InputError, match="give only one of them"):
        recipes.resolve({"teacher": {"train": {"epochs": 1, "steps": 2}}})


def test_yaml_numbers_and_null() -> None:
    config = recipes.resolve({"teacher": {"train": {"lr": "1e-3", "epochs": 3}}}, [("filter", None)])
    assert (config.teacher.train.lr, config.teacher.train.epochs, config.filter) == (1e-3, 3.0, None)
    config = recipes.resolve({}, [("teacher.augment.randaugment", None), ("data.labeled", "one")])
    assert config.teacher.augment.randaugment is None and config.data.labeled == ("one",)
    config = recipes.resolve({}, [("teacher.model.options", {"act_layer": "relu"})])
    assert config.teacher.model.options == {"act_layer": "relu"}


@pytest.mark.parametrize(
    "dotted, value, expected",
    [
        ("teacher.train.lrr", 1, "no field 'teacher.train.lrr'; did you mean 'teacher.train.lr'?"),
        ("nonsense", 1, "no field 'nonsense'"),
        ("student.train.batch_size", 0, "train.batch_size is 0; it must be at least 1"),
        ("student.train.steps", 0, "train.steps is 0; it must be at least 1"),
        ("student.train.epochs", -3, "train.epochs is -3.0; it must be above 0"),
        ("teacher.train.lr", -1, "train.lr is -1.0; it must be at least 0"),
        ("teacher.train.decay_epochs", 0, "train.decay_epochs is 0.0; it must be above 0"),
        ("data.max_pixels", 500_000_000, "500000000; it must be at least 1 and at most 178,956,970"),
        ("student.pseudo_label", {"noise": True, "on_the_fly": True}, "pseudo_label.noise is true, but"),
        ("student.finetune", {"steps": 0}, "finetune.steps is 0; it must be at least 1"),
        ("student.finetune", {"epochs": 0}, "finetune.epochs is 0.0; it must be above 0"),
        ("student.train.batch_size", 1.5, "is 1.5; it must be a whole number"),
        ("control", 1, "control.0 is 1; it must be one of none, same_steps, same_compute"),
        ("control", ["none", "same_steps"], "it must be none, or a list of same_steps, same_compute and"),
        ("teacher", 3, "3 is given where a mapping of fields is needed"),
    ],
)
def test_wrong_overrides_are_one_line(dotted: str, value: object, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        recipes.resolve(RAW, [(dotted, value)])
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_an_error_names_what_has_the_value_the_file_or_an_override(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(RAW))
    wrong = [("seed", 3), ("teacher.train.epochs", 0), ("student.train.epochs", 0), ("seed", 4)]
    with pytest.raises(InputError, match=r"^--teacher\.train\.epochs 0: train\.epochs is 0"):
        recipes.load(str(file), wrong)
    file.write_text(yaml.safe_dump(RAW | {"device": 3.5, "seed": "x"}))
    with pytest.raises(InputError, match=rf"^{file}: seed is 'x'; it must be a whole number"):
        recipes.load(str(file), [("teacher.train.epochs", 2)])


def test_the_given_mapping_is_not_changed() -> None:
    before = yaml.safe_dump(RAW)
    recipes.resolve(RAW, [("student.model.dropout", 0.3), ("students.0.init", "teacher"), ("seed", 4)])
    assert yaml.safe_dump(RAW) == before


def test_the_help_of_a_numeric_field_has_its_range() -> None:
    meanings = {name: meaning for name, _, meaning in recipes.field_help()}
    assert meanings["student.selection.threshold"].endswith(" (at least 0 and below 1)")
    assert meanings["data.max_pixels"].endswith(" (at least 1 and at most 178,956,970)")
    assert "(" not in meanings["device"]


_FIELDS = [row[0] for row in recipes.field_help()]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(_FIELDS))
def test_every_field_can_be_given_its_own_default(dotted: str) -> None:
    """An override that repeats the value of a field changes nothing."""
    longer = FinetuneConfig(epochs=1.5)
    plain = Config(
        data=DataConfig(pool_tags=True),
        pretrain=LearnerConfig(),
        teacher=TeacherConfig(finetune=longer),
        teachers=(FirstTeacherConfig(finetune=longer), FirstTeacherConfig(labels_from="file")),
        filter=LearnerConfig(),
        students=(StudentConfig(finetune=longer),),
    )
    raw = yaml.safe_load(recipes.dump(plain))
    value: Any = raw
    for key in dotted.split("."):
        value = value["students"][0] if key == "student" else value[int(key) if key.isdigit() else key]
    given_both = [(dotted, value)]
    if dotted.startswith("student."):
        given_both.append((f"students.0.{dotted.removeprefix('student.')}", value))
    assert recipes.resolve(raw, given_both) == plain
