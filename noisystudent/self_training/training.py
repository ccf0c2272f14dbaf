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
from noisystudent.metrics import scores, temperature
from noisystudent.models.classifier import TEMPERATURE, Classifier, load_weights, save_weights
from noisystudent.models.registry import build_model
from noisystudent.records import Batch
from noisystudent.run.rundir import ModelDir
from noisystudent.runtime import resolve_dtype
from noisystudent.self_training.models import first_model, with_rate
from noisystudent.self_training.noise import TrainingNoise
from noisystudent.self_training.phases import Phase, Rows, divide, steps_for_pool
from noisystudent.train.ema_teacher import EmaTeacher
from noisystudent.train.loop import fit
from noisystudent.train.optim import describe_rates, lr_at
from noisystudent.train.step import TrainStep


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
    lr: Callable[[int], float] | None = None
    curve: bool = True
    evaluation: EvaluateConfig = field(default_factory=EvaluateConfig)

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
        return self._rate()[0]

    def _rate(self) -> tuple[TrainConfig, str]:
        from_weights = bool(self.learner.model.pretrained) or self.initial is not None
        return with_rate(self.learner, self.resolution, from_weights=from_weights)

    @property
    def policy(self) -> Policy:
        """Distribution of the input noise."""
        return build_policy(self.learner.augment, self.resolution)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the forward pass: float32 or bfloat16."""
        return resolve_dtype(self.learner.train.precision, self.device)

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
        # On a GPU bf16 is the default; see `resolve_dtype`.
        fallback = self.device.type == "cuda" and self.dtype == torch.float32
        fallback = fallback and self.learner.train.precision != "fp32"
        config, family = self._rate()
        return (
            f"{self.learner.model.name}, {self.total_steps:,} steps of {first.rows[0]:,} labelled"
            f" and {first.rows[1]:,} pool images"
            f"{f', at the end of {last.rows[0]:,} and {last.rows[1]:,},' if last is not first else ','}"
            f" {self.resolution} pixels"
            f"{', in fp32 because this GPU has no bf16' if fallback else ''}"
            f"{f', learning rate {config.lr:g} ({family}, {config.optimizer})' if family else ''}"
        )


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
    model = _first_model(training, progress)
    if rates := describe_rates(model, training.config):
        progress.say(rates)
    ema = training.ema if pool is not None else None
    noise = TrainingNoise(
        model,
        training.learner,
        training.policy,
        training.seed,
        training.resolution,
        views_from=None if ema is None else ema.first_step,
        progress=progress,
    )
    averaged = fit(
        model,
        lambda start, stop: noise.batches(_batches(training, pool, start, stop), start),
        _train_step(training, noise, ema),
        total_steps=training.total_steps,
        steps_per_epoch=training.steps_per_epoch,
        folder=training.folder,
        progress=progress,
        # Stored labels and those of the moving average are two kinds of steps in one phase.
        kinds=len(training.phases(pool=pool is not None)) + (ema is not None and ema.first_step > 0),
        evaluate=partial(_evaluate_val, training) if training.curve else None,
        on_log=on_log,
    )
    assert isinstance(averaged, Classifier)
    averaged.merge_lora()  # the file is of the ordinary network
    metadata = {TEMPERATURE: str(_fitted(training, averaged))}
    save_weights(averaged, training.folder.weights, training.dataset.classes, metadata)


def _train_step(training: Training, noise: TrainingNoise, ema: EmaTeacher | None) -> TrainStep:
    schedule = partial(
        lr_at,
        config=training.config,
        steps_per_epoch=training.steps_per_epoch,
        total_steps=training.total_steps,
    )
    return TrainStep(
        noise=noise,
        lr=training.lr or schedule,
        config=training.config,
        num_classes=len(training.dataset.classes),
        dtype=training.dtype,
        hard_pool=training.hard,
        pool_temperature=training.temperature,
        teacher=ema,
    )


def predictor(training: Training, model: Classifier | None = None) -> Predictor:
    """Return a predictor with the trained weights on disk, or with `model` during the training."""
    return Predictor(
        models=(_finished_model(training) if model is None else model,),
        classes=training.dataset.classes,
        device=training.device,
        dtype=training.dtype,
        batch_size=training.evaluation.batch_size,
        workers=training.workers,
        path=training.folder.weights,
        eager=training.learner.train.execution == "eager",
    )


def _first_model(training: Training, progress: Progress) -> Classifier:
    """Return the model at step 0, on the device: random, published, or other weights (`training.initial`)."""
    model = first_model(
        training.learner,
        len(training.dataset.classes),
        training.resolution,
        seed=training.seed,
        initial=training.initial,
        new_head=training.new_head,
        progress=progress,
    )
    return model.to(training.device)


def _finished_model(training: Training) -> Classifier:
    """Return the trained model on the device, in evaluation mode and without noise."""
    model = build_model(
        training.learner.model, len(training.dataset.classes), training.resolution, pretrained=False
    )
    load_weights(model, training.folder.weights)
    layout = torch.channels_last if training.learner.train.channels_last else torch.preserve_format
    return model.to(training.device).to(memory_format=layout).eval()


def _batches(training: Training, pool: SelectedPool | None, start: int, stop: int) -> Iterator[Batch]:
    """Yield the joint batches of steps start … stop-1. The only input noise in them is the Inception crop."""
    policy, config = training.policy, training.learner.augment
    noised = {"labeled": config.labeled, "pool": config.pool}

    # An Inception crop is cut from the original image, while it is decoded.
    def boxes(stream: str, step: int, sizes: NDArray[np.int32]) -> NDArray[np.float32] | None:
        return plan.crop_boxes(policy, training.seed, stream, step, sizes) if noised[stream] else None

    for phase in training.phases(pool=pool is not None):
        if max(start, phase.start) >= min(stop, phase.stop):
            continue
        yield from joint_batches(
            training.dataset.labeled,
            training.dataset.pool,
            pool,
            labeled_batch=phase.rows[0],
            pool_batch=phase.rows[1],
            resolution=training.resolution,
            seed=training.seed,
            start=max(start, phase.start),
            stop=min(stop, phase.stop),
            device=training.device,
            workers=training.workers,
            boxes=boxes if policy.crop == "inception" else None,
            offsets=phase.offsets,
        )


def _evaluate_val(training: Training, averaged: nn.Module) -> dict[str, float]:
    """Return the scores of the moving average on val: one point of the learning curve."""
    probs, labels = _val_probs(training, averaged), training.dataset.val.labels
    measured = scores.score(probs, labels, training.evaluation.ece_bins)
    return {f"val_{name}": value for name, value in measured.items()}


def _fitted(training: Training, averaged: nn.Module) -> float:
    """Return the temperature that is fitted on val; 1 for a model that has other classes than val."""
    if not training.curve:
        return 1.0
    return temperature.fit(_val_probs(training, averaged), training.dataset.val.labels)


def _val_probs(training: Training, averaged: nn.Module) -> NDArray[np.float32]:
    assert isinstance(averaged, Classifier)
    return predictor(training, averaged).probs(training.dataset.val)
