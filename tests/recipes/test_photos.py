"""The recipes for photographs, without a network, from real weights in a file."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import tiny
import torch
import yaml
from safetensors.torch import load_file

from noisystudent import recipes
from noisystudent.config import Config
from noisystudent.config.controls import probe_is_teacher, trained_controls
from noisystudent.models import pretrained
from noisystudent.self_training.checks import check_config

SIDE = 64
DOCUMENT = Path(__file__).parents[2] / "docs" / "pretrained.md"


def _refused(*_: object) -> None:
    raise AssertionError("weights are downloaded")


@pytest.fixture
def lite0(lite0_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real weights; the network is refused."""
    monkeypatch.setattr(pretrained, "_download", _refused)
    return lite0_file


def small(recipe: str, images: Path, weights: Path, *fields: tuple[str, Any]) -> Config:
    """The recipe on the tiny images, with other weights, as a user gives them, and few steps."""
    given: list[tuple[str, Any]] = [
        (f"data.{field}", str(images / name)) for field, name in tiny.SETS.items()
    ]
    given += [("data.resolution", SIDE), ("data.workers", 0), ("device", "cpu"), ("evaluate.resamples", 200)]
    given += [("teacher.model.name", "tf_efficientnet_lite0"), ("teacher.model.pretrained", str(weights))]
    given += [("teacher.model.remap", "order"), ("teacher.train.steps", 40), ("teacher.train.batch_size", 18)]
    return recipes.load(recipe, [*given, *fields])


@pytest.mark.parametrize("recipe", ["photos", "photos-finetune"])
def test_the_first_teacher_is_the_linear_probe_and_the_weights_are_free(recipe: str) -> None:
    """DINOv3's licence is its own, so its weights are no default."""
    config = recipes.load(recipe)
    assert probe_is_teacher(config) and trained_controls(config) == ("same_steps",)
    assert timm.get_pretrained_cfg(config.teacher.model.name).license == "apache-2.0"
    assert {student.model.name for student in config.students} == {config.teacher.model.name}


def test_the_documentation_states_the_licences_that_timm_states() -> None:
    rows = re.findall(r"^\| (`.*) \| ([a-z0-9.-]+) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    stated = {name: licence for names, licence in rows for name in re.findall(r"`([^`]+)`", names)}
    assert stated == {name: timm.get_pretrained_cfg(name).license for name in stated} and len(stated) > 10


def test_the_recipe_in_the_documentation_is_one() -> None:
    (recipe,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    config = recipes.resolve(yaml.safe_load(recipe))
    check_config(dataclasses.replace(config, device="cpu"), pool=True)
    assert trained_controls(config) == ("same_steps", "linear_probe"), "three teachers are no linear probe"


def test_the_one_is_the_other_up_to_the_last_student() -> None:
    first, second = (yaml.safe_load(recipes.text(name)) for name in ("photos", "photos-finetune"))
    assert first.pop("students") == len(second.pop("students")) == 3
    assert first | {"name": ""} == second | {"name": ""}


@pytest.mark.slow
def test_photos_then_its_fine_tuning_in_the_same_folder(images: Path, lite0: Path, tmp_path: Path) -> None:
    tiny.run(small("photos", images, lite0), tmp_path)
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert list(verdict["comparisons"]) == ["teacher", "control"]
    if verdict["comparisons"]["teacher"]["difference"] <= 0:
        assert "the pool added nothing: the first teacher, a linear probe" in verdict["sentence"]
    backbone = load_file(tmp_path / "embeddings" / "backbone.safetensors")
    heads = {"classifier.weight", "classifier.bias"}

    def changed(model: str) -> set[str]:
        weights = load_file(tmp_path / model / "model.safetensors")
        assert weights.keys() == backbone.keys()
        return {name for name in weights if not torch.equal(weights[name], backbone[name])}

    assert all(changed(f"iteration-{index}/student") == heads for index in (1, 2, 3))
    short = [("students.2.train.steps", 2), ("students.2.train.batch_size", 4)]
    lines = tiny.run(small("photos-finetune", images, lite0, *short), tmp_path)
    for stage in ("embeddings", "teacher", "out-of-fold", "student-1", "student-2"):
        assert f"{stage}: done before, skipped" in lines
    assert changed("iteration-2/student") == heads and len(changed("iteration-3/student")) > len(heads)
    assert len(changed("iteration-3/control")) > len(heads)
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert list(verdict["comparisons"]) == ["teacher", "control"]
