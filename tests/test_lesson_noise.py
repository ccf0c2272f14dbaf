"""The noise of a lesson: labelled and pool rows do not feel each other's, nor one batch the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray

from noisystudent.augment import ops, plan, policies
from noisystudent.config import ModelConfig
from noisystudent.models import build_model
from noisystudent.self_training import learner
from noisystudent.self_training.learner import Lesson


def noised(lesson: Lesson) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Clean and noised images of three steps."""
    noise = learner._noise(build_model(lesson.learner.model, 3, lesson.resolution), lesson)
    for step, batch in enumerate(learner._batches(lesson, 0, 3)):
        noise.draw(batch, step)
        yield batch.images.numpy(), noise.apply(batch.images).numpy()


@pytest.mark.parametrize("crop", ["pad", "inception"])
@pytest.mark.parametrize("off", ["pool", "labeled"])
def test_pixels_of_one_part_do_not_feel_the_noise_of_the_other(
    images: Path, finished: Path, tmp_path: Path, crop: str, off: str
) -> None:
    config, dataset = tiny.opened(images, finished)
    both = noised(tiny.lesson(config, dataset, tmp_path, crop=crop))
    one = noised(tiny.lesson(config, dataset, tmp_path, crop=crop, **{off: False}))
    clean = noised(tiny.lesson(config, dataset, tmp_path, crop="none", flip=False, randaugment=None))
    quiet, loud = (slice(6, None), slice(6)) if off == "pool" else (slice(6), slice(6, None))
    for (_, with_both), (_, with_one), (original, _) in zip(both, one, clean, strict=True):
        assert np.array_equal(with_both[loud], with_one[loud])
        assert not np.array_equal(with_both[quiet], with_one[quiet])
        assert np.array_equal(with_one[quiet], original[quiet]), "off is the clean view"


@pytest.mark.parametrize("together", [1, 2, 3, 100])
def test_noise_of_several_batches_at_once_is_that_of_each(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    config, dataset = tiny.opened(images, finished)
    plain = tiny.lesson(config, dataset, tmp_path)
    model = build_model(plain.learner.model, 3, plain.resolution)
    each, several = learner._noise(model, plain), learner._noise(model, plain)
    batches = list(learner._batches(plain, 5, 12))
    monkeypatch.setattr(ops, "BLOCK", together * batches[0].images.numel())
    prepared = several.ahead(iter(batches), 5)
    for step, (batch, same) in enumerate(zip(batches, prepared, strict=True), 5):
        assert same is batch
        for noise in (each, several):
            noise.draw(batch, step)
        assert torch.equal(several.apply(batch.images), each.apply(batch.images))


@pytest.mark.parametrize("crop", ["none", "pad", "inception"])
def test_a_noised_labeller_crops_as_its_training_did(
    images: Path, finished: Path, tmp_path: Path, crop: str
) -> None:
    config, dataset = tiny.opened(images, finished)
    lesson = tiny.lesson(config, dataset, tmp_path, crop=crop, flip=False, randaugment=None)
    rows = np.arange(4, 12)
    model = build_model(lesson.learner.model, 3, lesson.resolution)
    (seen,) = learner.noised_views([model], lesson, dataset.pool)(iter([rows]))
    policy = policies.build_policy(lesson.learner.augment, lesson.resolution)
    boxes = plan.crop_boxes(policy, lesson.seed, "labeling", 4, dataset.pool.view_sizes(rows))
    views = dataset.pool.fetch(rows, lesson.resolution, boxes)
    moved = ops.apply(views, plan.draw(policy, lesson.seed, "labeling", 4, len(rows), lesson.resolution))
    assert torch.equal(seen, moved)
    assert torch.equal(seen, dataset.pool.fetch(rows, lesson.resolution)) == (crop == "none")


def test_model_noise_of_the_labels_does_not_feel_the_pools(
    images: Path, finished: Path, tmp_path: Path
) -> None:
    config, dataset = tiny.opened(images, finished)
    plain = tiny.lesson(config, dataset, tmp_path)
    batch = next(learner._batches(plain, 0, 1))
    outputs = {}
    for name in ("both", "labeled only"):
        model_config = dataclasses.replace(
            plain.learner.model, dropout=0.5, stochastic_depth=0.5, noise_pool=name == "both"
        )
        model = build_model(model_config, 3, tiny.SIDE, seed=1).eval()
        with torch.no_grad():
            clean = model(batch.images)
            changed = dataclasses.replace(
                plain, learner=dataclasses.replace(plain.learner, model=model_config)
            )
            learner._noise(model, changed).draw(batch, 0)
            outputs[name] = model(batch.images)
    assert torch.equal(outputs["both"][:6], outputs["labeled only"][:6])
    assert not torch.equal(outputs["both"][:6], clean[:6])
    assert not torch.equal(outputs["both"][6:], clean[6:])
    assert torch.equal(outputs["labeled only"][6:], clean[6:])
    assert isinstance(model_config, ModelConfig)
