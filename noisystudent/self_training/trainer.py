"""Runs a training: batches, noise and steps, evaluations on val, and the weights in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import nn

from noisystudent.augment import plan
from noisystudent.console import Progress
from noisystudent.data.loader import SelectedPool, joint_batches
from noisystudent.data.prepare import Dataset
from noisystudent.metrics import scores, temperature
from noisystudent.models.classifier import TEMPERATURE, Classifier, save_weights
from noisystudent.models.heads import Head
from noisystudent.records import Batch
from noisystudent.self_training.heads import FeatureNoise, save_head
from noisystudent.self_training.noise import TrainingNoise
from noisystudent.self_training.training import Training, start, train_step, val_probs
from noisystudent.train.loop import fit


def train(
    training: Training,
    pool: SelectedPool | None,
    progress: Progress,
    on_log: Callable[[dict[str, float]], None],
) -> None:
    """Train a model, and write the weights of its moving average to `training.folder.weights`.

    The metadata of the file holds the temperature that was fitted on val. An interrupted training continues
    from its last snapshot. `on_log` receives each line of metrics.jsonl.

    Raises:
        RunError: the training diverged, or the disk is full.
        Stopped: a signal was received. Another call resumes.
    """
    averaged = fitted(training, pool, progress, on_log)
    metadata = {TEMPERATURE: str(_fitted_temperature(training, averaged))}
    if training.cache is not None:
        assert isinstance(averaged, Head)
        save_head(averaged, training.learner.model, training.cache, training.folder.weights, metadata)
        return
    assert isinstance(averaged, Classifier)
    save_weights(averaged, training.folder.weights, training.dataset.classes, metadata)


def fitted(
    training: Training,
    pool: SelectedPool | None,
    progress: Progress,
    on_log: Callable[[dict[str, float]], None],
) -> nn.Module:
    """Train a model as `train` does, and return its moving average, a `Classifier` or a `Head`.

    Only the snapshots are written.
    """
    ema = training.ema if pool is not None else None
    model, noise = start(training, ema, progress)
    sets = training.sets
    return fit(
        model,
        lambda start, stop: noise.batches(_batches(training, sets, noise, pool, range(start, stop)), start),
        train_step(training, noise, ema),
        total_steps=training.total_steps,
        steps_per_epoch=training.steps_per_epoch,
        folder=training.folder,
        progress=progress,
        # Stored labels and those of the moving average are two kinds of steps in one phase.
        kinds=len(training.phases(pool=pool is not None)) + (ema is not None and ema.first_step > 0),
        evaluate=partial(_evaluate_val, training) if training.curve else None,
        on_log=on_log,
    )


def _batches(
    training: Training,
    sets: Dataset,
    noise: TrainingNoise | FeatureNoise,
    pool: SelectedPool | None,
    steps: range,
) -> Iterator[Batch]:
    """Yield the joint batches of some steps.

    The only noise in them is the Inception crop; of a head, the choice among the cached views.
    """
    policy, config = training.policy, training.learner.augment
    noised = {"labeled": config.labeled, "pool": config.pool}

    # An Inception crop is cut from the original image, while it is decoded.
    def boxes(stream: str, step: int, sizes: NDArray[np.int32]) -> NDArray[np.float32] | None:
        return plan.crop_boxes(policy, training.seed, stream, step, sizes) if noised[stream] else None

    drawn = boxes if policy.crop == "inception" else None
    for phase in training.phases(pool=pool is not None):
        if max(steps.start, phase.start) >= min(steps.stop, phase.stop):
            continue
        yield from joint_batches(
            sets.labeled,
            sets.pool,
            pool,
            labeled_batch=phase.rows[0],
            pool_batch=phase.rows[1],
            resolution=training.resolution,
            seed=training.seed,
            start=max(steps.start, phase.start),
            stop=min(steps.stop, phase.stop),
            device=training.device,
            workers=training.workers,
            boxes=noise.views_of if isinstance(noise, FeatureNoise) else drawn,
            offsets=phase.offsets,
        )


def _evaluate_val(training: Training, averaged: nn.Module) -> dict[str, float]:
    """Return the scores of the moving average on val: one point of the learning curve."""
    probs, labels = val_probs(training, averaged), training.dataset.val.labels
    measured = scores.score(probs, labels, training.evaluation.ece_bins)
    return {f"val_{name}": value for name, value in measured.items()}


def _fitted_temperature(training: Training, averaged: nn.Module) -> float:
    """Return the temperature that is fitted on val; 1 for a model that has other classes than val."""
    if not training.curve:
        return 1.0
    return temperature.fit(val_probs(training, averaged), training.dataset.val.labels)
