"""Noise of a training: labelled rows, pool rows and batches have independent noise."""

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
from noisystudent.models import Classifier, build_model
from noisystudent.records import Batch
from noisystudent.self_training import training as trainings
from noisystudent.self_training.noise import TrainingNoise
from noisystudent.self_training.predict import noised_views
from noisystudent.self_training.training import Training


def noise_of(training: Training, model: Classifier | None = None) -> TrainingNoise:
    model = model or build_model(training.learner.model, 3, training.resolution)
    return TrainingNoise(model, training.learner, training.policy, training.seed, training.resolution)


def batches(training: Training, start: int, stop: int) -> Iterator[Batch]:
    """Return batches whose only input noise is the crop of the decoder."""
    assert training.read_pool is not None
    return trainings.batches(training, training.read_pool(), start, stop)


def noised(training: Training) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield the images of three steps, (B, 3, S, S) uint8, without and with input noise."""
    noise = noise_of(training)
    both = zip(batches(training, 0, 3), noise.batches(batches(training, 0, 3), 0), strict=True)
    for step, (clean, batch) in enumerate(both):
        noise.draw(batch, step)
        assert torch.equal(noise.apply(batch.images), batch.images), "the batch has its noise on a CPU"
        yield clean.images.numpy(), batch.images.numpy()


@pytest.mark.parametrize("crop", ["pad", "inception"])
@pytest.mark.parametrize("off", ["pool", "labeled"])
def test_pixels_of_one_part_do_not_depend_on_the_noise_of_the_other(
    images: Path, finished: Path, tmp_path: Path, crop: str, off: str
) -> None:
    config, dataset = tiny.opened(images, finished)
    both = noised(tiny.training(config, dataset, tmp_path, crop=crop))
    one = noised(tiny.training(config, dataset, tmp_path, crop=crop, **{off: False}))
    clean = noised(tiny.training(config, dataset, tmp_path, crop="none", flip=False, randaugment=None))
    without, with_noise = (slice(6, None), slice(6)) if off == "pool" else (slice(6), slice(6, None))
    for (_, with_both), (_, with_one), (original, _) in zip(both, one, clean, strict=True):
        assert np.array_equal(with_both[with_noise], with_one[with_noise])
        assert not np.array_equal(with_both[without], with_one[without])
        assert np.array_equal(with_one[without], original[without]), "without noise it is the clean view"


@pytest.mark.parametrize("together", [1, 2, 3, 100])
def test_noise_of_several_batches_at_once_equals_that_of_single_batches(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    config, dataset = tiny.opened(images, finished)
    plain = tiny.training(config, dataset, tmp_path)
    noise = noise_of(plain)
    originals = list(batches(plain, 5, 12))
    each = [next(noise.batches(iter([batch]), step)) for step, batch in enumerate(originals, 5)]
    monkeypatch.setattr(ops, "BLOCK", together * originals[0].images.numel())
    several = list(noise.batches(iter(originals), 5))
    for original, alone, grouped in zip(originals, each, several, strict=True):
        assert torch.equal(grouped.images, alone.images)
        assert not torch.equal(grouped.images, original.images)
        assert grouped.labels is original.labels and grouped.pool_targets is original.pool_targets


@pytest.mark.parametrize("together", [1, 3])
def test_noise_does_not_depend_on_where_a_training_resumes(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    config, dataset = tiny.opened(images, finished)
    plain = tiny.training(config, dataset, tmp_path)
    noise = noise_of(plain)
    monkeypatch.setattr(ops, "BLOCK", together * next(batches(plain, 0, 1)).images.numel())
    whole = list(noise.batches(batches(plain, 0, 8), 0))
    resumed = list(noise.batches(batches(plain, 4, 8), 4))
    for one, other in zip(whole[4:], resumed, strict=True):
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("crop", ["none", "pad", "inception"])
def test_a_noised_labeller_crops_as_its_training_did(
    images: Path, finished: Path, tmp_path: Path, crop: str
) -> None:
    config, dataset = tiny.opened(images, finished)
    training = tiny.training(config, dataset, tmp_path, crop=crop, flip=False, randaugment=None)
    rows = np.arange(4, 12)
    teacher = trainings.predictor(training, build_model(training.learner.model, 3, training.resolution))
    (noised,) = noised_views(training, teacher, dataset.pool, iter([rows]))
    policy = policies.build_policy(training.learner.augment, training.resolution)
    boxes = plan.crop_boxes(policy, training.seed, "labeling", 4, dataset.pool.view_sizes(rows))
    views = dataset.pool.fetch(rows, training.resolution, boxes)
    moved = ops.apply(
        views, plan.draw(policy, training.seed, "labeling", 4, len(rows), resolution=training.resolution)
    )
    assert torch.equal(noised, moved)
    assert torch.equal(noised, dataset.pool.fetch(rows, training.resolution)) == (crop == "none")


def test_model_noise_of_the_labels_does_not_depend_on_that_of_the_pool(
    images: Path, finished: Path, tmp_path: Path
) -> None:
    config, dataset = tiny.opened(images, finished)
    plain = tiny.training(config, dataset, tmp_path)
    batch = next(batches(plain, 0, 1))
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
            noise = noise_of(changed, model)
            noise.draw(batch, 0)
            noise.apply(batch.images)
            outputs[name] = model(batch.images)
    assert torch.equal(outputs["both"][:6], outputs["labeled only"][:6])
    assert not torch.equal(outputs["both"][:6], clean[:6])
    assert not torch.equal(outputs["both"][6:], clean[6:])
    assert torch.equal(outputs["labeled only"][6:], clean[6:])
    assert isinstance(model_config, ModelConfig)
