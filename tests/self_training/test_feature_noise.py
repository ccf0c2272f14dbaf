"""Noise of a head on features, and what a run on features refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from noisystudent.config import Config
from noisystudent.data.prepare import open_dataset
from noisystudent.data.sources import open_sources
from noisystudent.errors import InputError
from noisystudent.records import Batch
from noisystudent.run.rundir import EmbeddingsDir, RunDir
from noisystudent.self_training.checks import check_config
from noisystudent.self_training.features import FeatureSet, with_features
from noisystudent.self_training.heads import FeatureNoise, draw_views, first_head


def config(images: Path, *fields: tuple[str, Any]) -> Config:
    return tiny.config(images, ("teacher.train.features", True), ("teacher.augment.views", 2), *fields)


@pytest.fixture(scope="module")
def features(images: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    """The labelled images of a run of a teacher."""
    given, out = config(images, ("students", 0)), tmp_path_factory.mktemp("features") / "run"
    tiny.run(given, out)
    dataset = open_dataset(RunDir(out).data, given.data, open_sources(given.data))
    labeled = with_features(dataset, EmbeddingsDir(out / "embeddings")).labeled
    assert isinstance(labeled, FeatureSet)
    return labeled


def noise(images: Path, features: FeatureSet, **augment: Any) -> FeatureNoise:
    learner = config(images).students[0]
    learner = replace(learner, augment=replace(learner.augment, **augment))
    return FeatureNoise(first_head(learner.model, features, 0, tiny.SIDE, None), learner, 5)


def test_a_step_draws_any_view(images: Path, features: FeatureSet) -> None:
    sizes = features.view_sizes(np.arange(18).repeat(20))
    drawn = draw_views(5, "labeled", 3, sizes)
    assert set(drawn[:, 0].tolist()) == {0, 1, 2, 3}
    assert (draw_views(5, "labeled", 3, sizes[:7]) == drawn[:7]).all(), "a row does not depend on the others"


def test_blended_rows_are_between_two_rows_of_their_part(images: Path, features: FeatureSet) -> None:
    values = features.fetch(np.arange(18), tiny.SIDE)
    batch = Batch(values, torch.arange(6) % 3, torch.eye(3)[torch.arange(12) % 3])
    (blended,) = noise(images, features, mix=0.5).batches(iter([batch]), 4)
    assert blended.blend is not None
    partner, share = blended.blend
    assert (partner[:6] < 6).all() and (partner[6:] >= 6).all()
    assert (share >= 0.5).all() and (share <= 1).all() and (share < 1).any()
    expected = share[:, None] * values + (1 - share[:, None]) * values[partner]
    assert torch.allclose(blended.images, expected, atol=1e-6)
    (clean,) = noise(images, features, mix=0.5, labeled=False, pool=False).batches(iter([batch]), 4)
    assert torch.equal(clean.images, values)


# --- refusals ---


@pytest.mark.parametrize(
    "fields, reason",
    [
        ([("student.pseudo_label.noise", True)], "students.0.pseudo_label.noise is true, but its teacher is"),
        ([("student.pseudo_label.scales", [1.0, 2.0])], "students.0.pseudo_label.scales is [1.0, 2.0], but"),
        (
            [("student.pseudo_label.flip", True), ("teacher.augment.flip", False)],
            "students.0.pseudo_label.flip is true, but its teacher is a head on cached features without",
        ),
        ([("student.pseudo_label.on_the_fly", True)], "on_the_fly is true, but students.0.train.features is"),
        (
            [("student.init", "teacher"), ("student.model.resolution", 24)],
            "students.0.init is teacher, but students.0.train.features is true and the features of its",
        ),
        (
            [("student.init", "teacher"), ("teacher.finetune", {"steps": 2}), ("student.finetune", None)],
            "students.0.init is teacher, but students.0.train.features is true and its teacher is fine-tuned",
        ),
        (
            [("data.pool_tags", True), ("pretrain.train.steps", 2)],
            "pretrain is given, and train.features is true",
        ),
    ],
)
def test_what_features_exclude_is_one_line(images: Path, fields: list[tuple[str, Any]], reason: str) -> None:
    with pytest.raises(InputError) as error:
        check_config(config(images, *fields), pool=True)
    assert reason in str(error.value)
