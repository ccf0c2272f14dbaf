"""One training: its settings, how it is run, and the predictor of the trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from noisystudent.augment import plan
from noisystudent.augment.policies import Policy, build_policy
from noisystudent.config import EvaluateConfig, LearnerConfig, TrainConfig
from noisystudent.console import Progress
from noisystudent.data.loader import SelectedPool, joint_batches
from noisystudent.data.prepare import Dataset
from noisystudent.inference.predictor import Predictor
from noisystudent.models.classifier import Classifier
from noisystudent.models.heads import Head
from noisystudent.records import Batch
from noisystudent.run.rundir import EmbeddingsDir, ModelDir
from noisystudent.runtime import resolve_dtype, wanted_dtype
from noisystudent.self_training.features import FeatureSet, with_features
from noisystudent.self_training.heads import FeatureNoise, draw_views, finished_head, first_head, of_head
from noisystudent.self_training.models import (
    describe_rate,
    fell_back,
    finished_model,
    first_model,
    may_fall_back,
    with_rate,
)
from noisystudent.self_training.noise import TrainingNoise
from noisystudent.self_training.phases import Phase, Rows, divide, steps_for_pool
from noisystudent.train.ema_teacher import EmaTeacher
from noisystudent.train.optim import describe_rates, lr_at
from noisystudent.train.step import Noise, TrainStep


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """Settings of one training.

    Attributes:
        folder: output folder.
        seed: seed of the training, derived from the seed of the run.
        resolution: input side in pixels.
        workers: number of decoding processes; 0: the main process decodes.
        read_pool: called when the training starts, returns the selected pool images. None: no pool.
        ratios: pool images per labelled image of a batch, in each phase of the training. A control gets
            labelled images in their place.
        pool_images: images in an epoch of the pool; it is read if `train.pool_epochs` gives the length.
        joint: True: a batch has labelled and pool images. False: pool images alone.
        hard: True: pseudo-labels are one-hot, and smoothed like given labels.
        temperature: temperature of the student's softmax on pool images, see `joint_loss`.
        ema: how the moving average labels the pool images. None: the labels of `read_pool` are used.
        initial: folder of the weights to start from. None: from scratch, or from published weights.
        new_head: True: the model in `initial` has other classes, so its classifier is not loaded.
        cache: folder of the features that a head is trained on. None: a network is trained on images.
        lr: function from step to learning rate. None: the schedule of the configuration.
        curve: evaluate on val during the training.
    """

    learner: LearnerConfig
    dataset: Dataset
    folder: ModelDir
    seed: int
    resolution: int
    device: torch.device
    workers: int
    read_pool: Callable[[], SelectedPool | None] | None = None
    ratios: tuple[int, ...] = (0,)
    pool_images: int = 0
    joint: bool = True
    hard: bool = False
    temperature: float = 1.0
    ema: EmaTeacher | None = None
    initial: ModelDir | None = None
    new_head: bool = False
    cache: EmbeddingsDir | None = None
    lr: Callable[[int], float] | None = None
    curve: bool = True
    evaluation: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def sets(self) -> Dataset:
        """The images that the model is trained and evaluated on, with their features if it is a head."""
        return self.dataset if self.cache is None else with_features(self.dataset, self.cache)

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps per epoch. An epoch counts only labelled images, as in the published code."""
        return len(self.dataset.labeled) / self.learner.train.batch_size

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        train = self.learner.train
        if train.pool_epochs is not None:
            drawn = train.pool_epochs * self.pool_images
            # Without `joint` a batch is of pool images alone.
            ratios = self.ratios if self.joint else [1 + ratio for ratio in self.ratios]
            return steps_for_pool(drawn, train.batch_size, ratios, train.label_tail)
        return train.steps or max(1, round((train.epochs or 0) * self.steps_per_epoch))

    @property
    def config(self) -> TrainConfig:
        """The configuration of the training with a learning rate, which it need not have."""
        return with_rate(self.learner, self.resolution, from_weights=self._from_weights)[0]

    @property
    def _from_weights(self) -> bool:
        # A head on features starts from scratch, or from weights that are as small a problem.
        published = bool(self.learner.model.pretrained) and not fell_back(self.folder)
        return (published or self.initial is not None) and not self.learner.train.features

    @property
    def policy(self) -> Policy:
        """Distribution of the input noise."""
        return build_policy(self.learner.augment, self.resolution)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the forward pass: float32 or bfloat16. It is float32 for a head."""
        return (
            torch.float32
            if self.cache is not None
            else resolve_dtype(self.learner.train.precision, self.device)
        )

    def phases(self, pool: bool) -> list[Phase]:
        """Return the phases, with or without a pool. The sum of the rows of a batch does not depend on it."""
        train = self.learner.train

        def rows(ratio: int, tail: bool) -> Rows:
            every = train.batch_size * (1 + ratio)
            if not pool or tail:
                return every, 0
            return (train.batch_size, train.batch_size * ratio) if self.joint else (0, every)

        return divide(self.total_steps, self.ratios, train.label_tail, rows)

    @property
    def images(self) -> int:
        """Images that all batches have together, labelled ones and pool images."""
        return sum(self.phases(pool=False)[-1].end)

    def describe(self, pool: SelectedPool | None) -> str:
        """Return one line of text with the network, steps, batch and resolution."""
        phases = self.phases(pool=pool is not None)
        first, last = phases[0], phases[-1]
        wanted = wanted_dtype(self.learner.train.precision, self.device)
        fallback = wanted == torch.bfloat16 and self.dtype == torch.float32
        name = f"{'head on features of ' if self.cache else ''}{self.learner.model.name}"
        later = self.cache is None and may_fall_back(self.learner.model, self.initial)  # by `first_model`
        rate = "" if later else describe_rate(self.learner, self.resolution, from_weights=self._from_weights)
        return (
            f"{name}, {self.total_steps:,} steps of {first.rows[0]:,} labelled"
            f" and {first.rows[1]:,} pool images"
            f"{f', at the end of {last.rows[0]:,} and {last.rows[1]:,},' if last is not first else ','}"
            f" {self.resolution} pixels"
            f"{', in fp32 because this processor has no bf16' if fallback else ''}"
            f"{f', {rate}' if rate else ''}"
        )


def start(
    training: Training, ema: EmaTeacher | None, progress: Progress
) -> tuple[Classifier | Head, TrainingNoise | FeatureNoise]:
    """Return the model at step 0, and all that is random in its training."""
    if training.cache is not None:
        labeled = training.sets.labeled
        assert isinstance(labeled, FeatureSet)
        config, side = training.learner.model, training.resolution
        head = first_head(config, labeled, training.seed, side, training.initial).to(training.device)
        return head, FeatureNoise(head, training.learner, training.seed)
    model = _first_model(training, progress)
    if rates := describe_rates(model, training.config):
        progress.say(rates)
    noise = TrainingNoise(
        model,
        training.learner,
        training.policy,
        training.seed,
        training.resolution,
        views_from=None if ema is None else ema.first_step,
        progress=progress,
    )
    return model, noise


def train_step(training: Training, noise: Noise, ema: EmaTeacher | None) -> TrainStep:
    """Return the definition of a step."""
    config = training.config
    schedule = partial(
        lr_at,
        config=config,
        steps_per_epoch=training.steps_per_epoch,
        total_steps=training.total_steps,
    )
    return TrainStep(
        noise=noise,
        lr=training.lr or schedule,
        config=of_head(config) if training.cache else config,
        num_classes=len(training.dataset.classes),
        dtype=training.dtype,
        hard_pool=training.hard,
        pool_temperature=training.temperature,
        teacher=ema,
    )


def predictor(training: Training, model: Classifier | Head | None = None) -> Predictor:
    """Return a predictor of images with the trained weights on disk, or with `model` during the training."""
    return Predictor(
        models=(_finished_model(training) if model is None else model,),
        classes=training.dataset.classes,
        device=training.device,
        dtype=training.dtype,
        workers=training.workers,
        path=training.folder.weights,
        eager=training.learner.train.execution == "eager" or isinstance(model, Head),
    ).limited(training.evaluation.batch_size)


def predictor_of_sets(training: Training) -> Predictor:
    """Return a predictor of the images in `training.sets` with the trained weights on disk.

    For a head they are features, of which one batch has as many as of some hundred images.
    """
    if training.cache is None:
        return predictor(training)
    config, classes = training.learner.model, len(training.dataset.classes)
    head = finished_head(config, training.folder.weights, classes, training.resolution)
    return predictor(training, head.to(training.device))


def _first_model(training: Training, progress: Progress) -> Classifier:
    """Return the model at step 0, on the device: random, published, or other weights (`training.initial`)."""
    return first_model(
        training.learner,
        len(training.dataset.classes),
        training.resolution,
        folder=training.folder,
        seed=training.seed,
        initial=training.initial,
        new_head=training.new_head,
        progress=progress,
    ).to(training.device)


def _finished_model(training: Training) -> Classifier:
    """Return the trained model on the device, in evaluation mode and without noise."""
    classes, weights = len(training.dataset.classes), training.folder.weights
    return finished_model(training.learner, weights, classes, training.resolution, training.device)


def val_probs(training: Training, averaged: nn.Module) -> NDArray[np.float32]:
    """Return the probabilities (N, K) of the moving average for the images of val."""
    assert isinstance(averaged, Classifier | Head)
    return predictor(training, averaged).probs(training.sets.val)


def batches(training: Training, pool: SelectedPool | None, start: int, stop: int) -> Iterator[Batch]:
    """Yield the joint batches of steps start … stop-1.

    The only noise in them is the Inception crop, or for a head the choice among the cached views.
    """
    policy, config, sets = training.policy, training.learner.augment, training.sets
    noised = {"labeled": config.labeled, "pool": config.pool}

    # An Inception crop is cut from the original image, while it is decoded.
    def boxes(stream: str, step: int, sizes: NDArray[np.int32]) -> NDArray[np.float32] | None:
        if not noised[stream]:
            return None
        if training.cache is not None:
            return draw_views(training.seed, stream, step, sizes)
        return plan.crop_boxes(policy, training.seed, stream, step, sizes)

    for phase in training.phases(pool=pool is not None):
        if max(start, phase.start) >= min(stop, phase.stop):
            continue
        yield from joint_batches(
            sets.labeled,
            sets.pool,
            pool,
            labeled_batch=phase.rows[0],
            pool_batch=phase.rows[1],
            resolution=training.resolution,
            seed=training.seed,
            start=max(start, phase.start),
            stop=min(stop, phase.stop),
            device=training.device,
            workers=training.workers,
            boxes=boxes if training.cache is not None or policy.crop == "inception" else None,
            offsets=phase.offsets,
        )
