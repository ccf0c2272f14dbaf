"""One network is trained, kept and read back: the only place where batches, noise and model meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import tee
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from noisystudent.augment import ops, plan, policies
from noisystudent.config import AugmentConfig, FinetuneConfig, LearnerConfig
from noisystudent.data.imageset import ImageSet
from noisystudent.data.loader import Chosen, clean_batches, joint_batches, requested_batches
from noisystudent.data.prepare import Dataset
from noisystudent.evaluate import suite
from noisystudent.models import registry
from noisystudent.models.registry import Classifier, build_model, load_trunk, load_weights, save_weights
from noisystudent.records import Batch
from noisystudent.runtime import StopFlag, resolve_dtype
from noisystudent.self_training.noise import LessonNoise
from noisystudent.train.loop import fit
from noisystudent.train.optim import lr_at

Predict = Callable[[Tensor], Tensor]
Boxes = Callable[[NDArray[np.int64]], NDArray[np.float32] | None]
"""Rows of a batch -> the windows (B, 4) that are shown of them."""
PoolViews = Callable[[Iterator[NDArray[np.int64]]], Iterator[Tensor]]
"""Rows of each batch -> its images."""

WEIGHTS = "model.safetensors"
_CLEAN = AugmentConfig(crop="none", flip=False, randaugment=None, labeled=False, pool=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """What one training consists of.

    Attributes:
        resolution: input side in pixels.
        chosen: the pool images and their pseudo-labels; None for a teacher or a control.
        ratio: pool images for each labelled one. Without `chosen` those rows of the batch are labelled images
            too, so a control sees as many images a step as its student.
        joint: labelled images stand in the batches; without them, pool images alone.
        hard: the pseudo-labels are one-hot, hence smoothed like given labels.
        temperature: of the student, see `joint_loss`.
        initial: weights to start from; None is from scratch.
        new_head: `initial` is of other classes: all but the classifier is taken over.
        frozen_blocks: see `Classifier.freeze`; None: all learn.
        lr: step -> learning rate; None: as the learner's schedule says.
        looks: at val on the way, for the learning curve.
        scored: images a forward pass when the model is.
    """

    learner: LearnerConfig
    dataset: Dataset
    folder: Path
    seed: int
    resolution: int
    device: torch.device
    workers: int
    chosen: Chosen | None = None
    ratio: int = 0
    joint: bool = True
    hard: bool = False
    temperature: float = 1.0
    initial: Path | None = None
    new_head: bool = False
    frozen_blocks: int | None = None
    lr: Callable[[int], float] | None = None
    looks: bool = True
    scored: int = 512

    @property
    def steps_per_epoch(self) -> float:
        """An epoch is counted on labelled images only (§2 of the paper's code)."""
        return len(self.dataset.labeled) / self.learner.train.batch_size

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        train = self.learner.train
        return train.steps or max(1, round((train.epochs or 0) * self.steps_per_epoch))

    @property
    def rows(self) -> tuple[int, int]:
        """(labelled, pool) rows of a batch."""
        batch = self.learner.train.batch_size
        if self.chosen is None or len(self.chosen.rows) == 0:
            return batch * (1 + self.ratio), 0
        return (batch, batch * self.ratio) if self.joint else (0, batch * (1 + self.ratio))


def train(
    lesson: Lesson, stop: StopFlag, notify: Callable[[str], None], on_log: Callable[[dict[str, float]], None]
) -> None:
    """Train, resume if there is something to resume, and leave `model.safetensors` of the EMA weights."""
    learner, device = lesson.learner, lesson.device
    classes = lesson.dataset.classes
    model = build_model(
        learner.model,
        len(classes),
        lesson.resolution,
        seed=lesson.seed,
        pretrained=learner.model.pretrained and lesson.initial is None,
        notify=notify,
    )
    if lesson.initial is not None:
        (load_trunk if lesson.new_head else load_weights)(model, lesson.initial)
    if lesson.frozen_blocks is not None:
        model.freeze(lesson.frozen_blocks)
    model.to(device)
    noise = _noise(model, lesson)
    averaged = fit(
        model,
        batches=lambda start, stop: noise.ahead(_batches(lesson, start, stop), start),
        noise=noise,
        config=learner.train,
        total_steps=lesson.total_steps,
        steps_per_epoch=lesson.steps_per_epoch,
        num_classes=len(classes),
        hard_pool=lesson.hard,
        folder=lesson.folder,
        device=device,
        dtype=resolve_dtype(learner.train.precision, device),
        stop=stop,
        lr=lesson.lr,
        pool_temperature=lesson.temperature,
        evaluate=partial(_look_at_val, lesson) if lesson.looks else None,
        on_log=on_log,
        notify=notify,
    )
    assert isinstance(averaged, Classifier)
    save_weights(averaged, lesson.folder / WEIGHTS, classes)


def finetuning(lesson: Lesson, config: FinetuneConfig, folder: Path) -> Lesson:
    """The second training of a finished lesson's model: labelled images alone, by default as they are.

    The learning rate is the tail of the first training's, as in the published code (main.py:582), unless the
    configuration has a peak of its own.
    """
    first = lesson.learner.train
    batch_size = config.batch_size or first.batch_size
    train = replace(first, batch_size=batch_size, steps=config.steps, epochs=config.epochs)
    if config.lr is not None:
        train = replace(train, lr=config.lr, schedule="cosine", warmup_epochs=0.0)
    learner = replace(
        lesson.learner, train=train, augment=lesson.learner.augment if config.augment else _CLEAN
    )
    second = replace(
        lesson,
        learner=learner,
        folder=folder,
        resolution=config.resolution or lesson.resolution,
        chosen=None,
        ratio=0,
        initial=lesson.folder / WEIGHTS,
        new_head=False,
        frozen_blocks=config.frozen_blocks,
    )
    if config.lr is not None:
        return second
    skipped = max(0, lesson.total_steps - second.total_steps)
    scaled = replace(first, batch_size=batch_size)

    def tail(step: int) -> float:
        at = min(skipped + step, lesson.total_steps - 1)
        return lr_at(at, scaled, lesson.steps_per_epoch, lesson.total_steps)

    return replace(second, lr=tail)


def load(lesson: Lesson) -> Classifier:
    """The trained model of a finished lesson, noise off, in evaluation mode, on the device."""
    model = build_model(
        lesson.learner.model, len(lesson.dataset.classes), lesson.resolution, pretrained=False
    )
    load_weights(model, lesson.folder / WEIGHTS)
    layout = torch.channels_last if lesson.learner.train.channels_last else torch.preserve_format
    return model.to(lesson.device).to(memory_format=layout).eval()


def predictor(model: Predict, lesson: Lesson) -> Predict:
    """uint8 images (B, 3, S, S) → logits (B, K) float32: no noise, running statistics, training precision."""
    return registry.asked(model, lesson.device, resolve_dtype(lesson.learner.train.precision, lesson.device))


def clean_views(
    lesson: Lesson, images: ImageSet, batch_size: int
) -> Callable[[NDArray[np.int64]], Iterator[Tensor]]:
    """Rows → batches of clean centre views at this learner's own resolution."""
    return lambda rows: clean_batches(
        images,
        rows,
        resolution=lesson.resolution,
        batch_size=batch_size,
        device=lesson.device,
        workers=lesson.workers,
    )


def pool_views(lesson: Lesson, images: ImageSet, boxes: Boxes | None = None) -> PoolViews:
    """As `clean_views`, for the rows of one batch after the other; `boxes` are windows in their place."""
    return partial(
        requested_batches,
        images,
        resolution=lesson.resolution,
        device=lesson.device,
        workers=lesson.workers,
        boxes=boxes,
    )


def noised_views(models: Sequence[Classifier], lesson: Lesson, images: ImageSet) -> PoolViews:
    """As `pool_views`, but with all training noise on: the paper's 'noised teacher' ablation (Table 6)."""
    policy = policies.build_policy(lesson.learner.augment, lesson.resolution)

    def boxes(rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        return plan.crop_boxes(policy, lesson.seed, "labeling", int(rows[0]), images.view_sizes(rows))

    cropped = pool_views(lesson, images, boxes if policy.crop == "inception" else None)

    def views(requests: Iterator[NDArray[np.int64]]) -> Iterator[Tensor]:
        requests, asked = tee(requests)
        for rows, batch in zip(asked, cropped(requests), strict=True):
            active = torch.ones(len(batch), dtype=torch.bool, device=lesson.device)
            for model in models:
                model.noise.draw(lesson.seed, int(rows[0]), active)
            drawn = plan.draw(policy, lesson.seed, "labeling", int(rows[0]), len(batch), lesson.resolution)
            yield ops.apply(batch, drawn)

    return views


def probabilities(model: nn.Module, lesson: Lesson, images: ImageSet) -> NDArray[np.float32]:
    """(N, K) class probabilities of clean images."""
    views = clean_views(lesson, images, lesson.scored)
    return suite.predict_probs(predictor(model, lesson), views(np.arange(len(images))))


def _batches(lesson: Lesson, start: int, stop: int) -> Iterator[Batch]:
    config = lesson.learner.augment
    policy = policies.build_policy(config, lesson.resolution)
    labeled_rows, pool_rows = lesson.rows
    noised = {"labeled": config.labeled, "pool": config.pool}

    def boxes(stream: str, step: int, sizes: NDArray[np.int32]) -> NDArray[np.float32] | None:
        return plan.crop_boxes(policy, lesson.seed, stream, step, sizes) if noised[stream] else None

    return joint_batches(
        lesson.dataset.labeled,
        lesson.dataset.pool,
        lesson.chosen,
        labeled_batch=labeled_rows,
        pool_batch=pool_rows,
        resolution=lesson.resolution,
        seed=lesson.seed,
        start=start,
        stop=stop,
        device=lesson.device,
        workers=lesson.workers,
        boxes=boxes if policy.crop == "inception" else None,
    )


def _noise(model: Classifier, lesson: Lesson) -> LessonNoise:
    policy = policies.build_policy(lesson.learner.augment, lesson.resolution)
    return LessonNoise(model, lesson.learner, policy, lesson.seed, lesson.resolution)


def _look_at_val(lesson: Lesson, averaged: nn.Module) -> dict[str, float]:
    """One point of the learning curve."""
    probs = probabilities(averaged, lesson, lesson.dataset.val)
    scores = suite.score(probs, lesson.dataset.val.labels)
    return {f"val_{name}": value for name, value in scores.items()}
