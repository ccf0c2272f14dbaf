"""What is wrong with a configuration is found before an image is decoded and before a folder is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import Capture, refused

from noisystudent import recipes
from noisystudent.config import Config
from noisystudent.errors import InputError
from noisystudent.self_training import self_train
from noisystudent.self_training.checks import check_config

FINETUNE = {"steps": 2, "frozen_blocks": 99}


@pytest.fixture
def undecodable(given: Path) -> Path:
    """Images of which none can be decoded: whoever decodes one stops the run with another message."""
    for file in given.rglob("*.png"):
        file.write_bytes(b"no image")
    return given


@pytest.mark.parametrize(
    "field, value, expected",
    [
        ("student.model.name", "resnet8_17", "model.name is 'resnet8_17'"),
        ("teacher.model.options", {"nonsense": 3}, "model.options has 'nonsense'"),
        ("filter", tiny.RECIPE["teacher"] | {"model": {"name": "resnet8_17"}}, "is 'resnet8_17'"),
        ("student.augment.randaugment", "rand-x", "augment.randaugment is 'rand-x'"),
        ("teacher.train.steps", None, "teacher.train has neither epochs nor steps"),
        ("student.finetune", FINETUNE, "finetune.frozen_blocks is 99"),
        ("device", "cuda:77", "device is 'cuda:77'"),
        ("data.unlabeled", [], "data.unlabeled is empty; give --unlabeled"),
    ],
)
def test_a_wrong_field_is_refused_before_the_images(
    undecodable: Path, tmp_path: Path, field: str, value: Any, expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        tiny.run(tiny.config(undecodable, (field, value)), tmp_path / "run")
    assert expected in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_forgotten_pool_is_refused(
    images: Path, recipe: Path, tmp_path: Path, capsys: Capture, command: str
) -> None:
    words = (command, recipe, "--labeled", images / "labeled", "--out", tmp_path / "run")
    message = refused(capsys, 2, *words)
    assert "data.unlabeled is empty; give --unlabeled" in message and "`noisystudent train`" in message
    assert not (tmp_path / "run").exists()
    assert tiny.call("plan", *words[1:], "--students", "0") == 0


def test_a_control_from_scratch_keeps_no_random_weights(images: Path) -> None:
    """That of the same steps starts from the teacher here, and that of the same compute never does."""
    fields = [("student.init", "teacher"), ("student.model.lora", 4)]
    check_config(tiny.config(images, *fields, ("control", ["same_steps"])), pool=True)
    with pytest.raises(InputError, match=r"model\.lora .* is 4, and its control same_compute starts"):
        check_config(tiny.config(images, *fields, ("control", ["same_compute"])), pool=True)


def test_every_network_of_a_run_is_checked(images: Path, tmp_path: Path) -> None:
    learner = tiny.RECIPE["teacher"]
    fields = [("filter", learner), ("pretrain", learner), ("data.pool_tags", True), ("students", 2)]
    for section in ("teacher", "filter", "pretrain", "students.0", "students.1"):
        name = (f"{section}.model.name", "resnet8_17")
        with pytest.raises(InputError, match="resnet8_17"):
            self_train(tiny.config(images, *fields, name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_has_an_image_for_each_part(images: Path) -> None:
    config = tiny.config(images, ("student.train.accumulate", 2))
    check_config(config, pool=True, processes=3)  # 6 labelled images in 6 parts
    with pytest.raises(InputError, match=r"students.0.train.batch_size is 6, .* 4 processes .* give 8 "):
        check_config(config, pool=True, processes=4)
    check_config(tiny.config(images), pool=True, processes=6)
    with pytest.raises(InputError, match=r"teacher.train.batch_size is 6, .* 7 processes .* give 7 "):
        check_config(tiny.config(images), pool=True, processes=7)


MLP = {"model": {"head": "mlp"}}
TWO = ("students", [{}, {"init": "teacher", "model": {"name": "resnet8_32"}}])
EMA = ("student.pseudo_label.teacher", "ema")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            [("student.init", "teacher"), ("student.model.name", "resnet8_32")],
            "students.0.init is teacher, but students.0.model.name is resnet8_32 and teacher.model.name is",
        ),
        (
            [("student.init", "teacher"), ("student.model.head", "mlp")],
            "students.0.model.head is mlp and teacher.model.head is linear",
        ),
        (
            [("teachers", [{}, MLP]), ("student", {"init": "teacher", **MLP})],
            "students.0.model.head is mlp and teachers.0.model.head is linear",
        ),
        ([TWO], "students.1.model.name is resnet8_32 and students.0.model.name is resnet8_16"),
        (
            [("student.train.execution", "captured")],
            "students.0.train.execution is captured, which needs a CUDA device; choose compiled or eager",
        ),
        ([("teacher.augment.mix", 0.3)], "teacher.augment.mix is 0.3, but teacher.train.features is false"),
        ([("student.augment.views", 5)], "students.0.augment.views is 5, but students.0.train.features is"),
        (
            [EMA, ("student.pseudo_label.ema_start", 0.8), ("student.train.label_tail", 0.2)],
            "ema_start is 0.8 and students.0.train.label_tail is 0.2, so the moving average labels no",
        ),
        (
            [("filter", tiny.RECIPE["teacher"]), ("students", [{}, {"selection": {"reassign": True}}])],
            "students.1.selection.reassign is true, but the filter selects",
        ),
    ],
)
def test_a_contradiction_is_refused_before_the_run(
    images: Path, fields: list[tuple[str, Any]], expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_config(tiny.config(images, *fields), pool=True)
    assert expected in str(caught.value)


LARGER = {"model": {"resolution": 64}, "finetune": {"steps": 1, "resolution": 96}}
CHAIN = ("students", [{"model": {"resolution": 64}}, {"init": "teacher", "model": {"resolution": 96}}])
FIRST = [("teacher.model.resolution", 64), ("student.model.resolution", 96), ("student.init", "teacher")]
OF_FOLDERS = [("data.pool_tags", True), ("pretrain", {"model": {"resolution": 64}, "train": {"steps": 1}})]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("teacher", LARGER)], "teacher.finetune.resolution is 96"),
        ([("students", [{}, LARGER])], "students.1.finetune.resolution is 96"),
        (FIRST, "students.0.init is teacher"),
        ([CHAIN], "students.1.init is teacher"),
        ([("teacher", LARGER), CHAIN], "teacher.finetune.resolution is 96"),
        ([*OF_FOLDERS, ("teacher.model.resolution", 96)], "pretrain is given"),
    ],
)
def test_weights_that_do_not_fit_another_resolution_are_refused_before_the_run(
    images: Path, fields: list[tuple[str, Any]], expected: str
) -> None:
    def with_network(name: str) -> Config:
        of_folders = ["pretrain"] if "pretrain" in dict(fields) else []
        parts = ["teacher", "student", *of_folders]
        return tiny.config(images, *fields, *((f"{part}.model.name", name) for part in parts))

    with pytest.raises(InputError) as caught:
        check_config(with_network("visformer_tiny"), pool=True)
    assert str(caught.value).startswith(f"{expected}, but the weights of visformer_tiny at 64 pixels do not")
    check_config(with_network("test_coatnet"), pool=True)  # timm converts its tables
    check_config(with_network("test_resnet"), pool=True)  # nothing in it depends on the resolution


def test_what_looks_like_a_contradiction_and_is_none_is_allowed(images: Path) -> None:
    heads = {"train": {"features": True}, "augment": {"mix": 0.3, "views": 2}}
    whole = {"init": "teacher", "train": {"features": False}, "augment": {"mix": 0, "views": 0}}
    tagged = [("teacher.model.name", "resnet18"), ("student.model.name", "resnet18.a1_in1k")]
    for fields in (
        [("teacher", heads), ("students", [{}, whole])],
        [*tagged, ("student.init", "teacher")],
        [EMA, ("student.pseudo_label.ema_start", 0.7), ("student.train.label_tail", 0.2)],
        [("student.pseudo_label.ema_start", 0.9), ("student.train.label_tail", 0.9)],
        [("students", [{}, {"selection": {"reassign": True}}])],
    ):
        check_config(tiny.config(images, *fields), pool=True)


SLOW = {"imagenet-l2": (pytest.mark.slow,)}  # L2 has thousands of modules


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in recipes.names()])
def test_every_shipped_recipe_passes(name: str) -> None:
    check_config(dataclasses.replace(recipes.load(name), device="cpu"), pool=True)
