"""One network is trained, kept and read back: the only place where batches, noise and model meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from noisystudent.augment import ops, plan, policies
from noisystudent.config import LearnerConfig
from noisystudent.data.imageset import ImageSet
from noisystudent.data.loader import Chosen, clean_batches, joint_batches
from noisystudent.data.prepare import Dataset
from noisystudent.evaluate import suite
from noisystudent.models.registry import Classifier, build_model, load_weights, save_weights
from noisystudent.records import Batch
from noisystudent.runtime import StopFlag, resolve_dtype
from noisystudent.self_training.noise import LessonNoise
from noisystudent.train.loop import fit

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """What one training consists of.

    Attributes:
        resolution: input side in pixels.
        chosen: the pool images and their pseudo-labels; None for a teacher or a control.
        ratio: pool images for each labelled one. Without `chosen` those rows of the batch are labelled images
            too, so a control sees as many images a step as its student.
        hard: the pseudo-labels are one-hot, hence smoothed like given labels.
        initial: weights to start from; None is from scratch.
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
    hard: bool = False
    initial: Path | None = None

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
        return batch, batch * self.ratio


def train(
    lesson: Lesson, stop: StopFlag, notify: Callable[[str], None], on_log: Callable[[dict[str, float]], None]
) -> None:
    """Train, resume if there is something to resume, and leave `model.safetensors` of the EMA weights."""
    learner, device = lesson.learner, lesson.device
    classes = lesson.dataset.classes
    model = build_model(learner.model, len(classes), lesson.resolution, seed=lesson.seed, notify=notify)
    if lesson.initial is not None:
        load_weights(model, lesson.initial)
    model.to(device)
    averaged = fit(
        model,
        batches=partial(_batches, lesson),
        noise=_noise(model, lesson),
        config=learner.train,
        total_steps=lesson.total_steps,
        steps_per_epoch=lesson.steps_per_epoch,
        num_classes=len(classes),
        hard_pool=lesson.hard,
        folder=lesson.folder,
        device=device,
        dtype=resolve_dtype(learner.train.precision, device),
        stop=stop,
        evaluate=partial(_look_at_val, lesson),
        on_log=on_log,
        notify=notify,
    )
    assert isinstance(averaged, Classifier)
    save_weights(averaged, lesson.folder / "model.safetensors", classes)


def load(lesson: Lesson) -> Classifier:
    """The trained model of a finished lesson, noise off, in evaluation mode, on the device."""
    model = build_model(
        lesson.learner.model, len(lesson.dataset.classes), lesson.resolution, pretrained=False
    )
    load_weights(model, lesson.folder / "model.safetensors")
    return model.to(lesson.device).eval()


def predictor(model: nn.Module, lesson: Lesson) -> Predict:
    """uint8 images (B, 3, S, S) → logits (B, K) float32: no noise, running statistics, training precision."""
    device = lesson.device
    dtype = resolve_dtype(lesson.learner.train.precision, device)

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits: Tensor = model(images.to(device, non_blocking=True))
        return logits.float()

    return predict


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


def noised_views(
    model: Classifier, lesson: Lesson, images: ImageSet, batch_size: int
) -> Callable[[NDArray[np.int64]], Iterator[Tensor]]:
    """As `clean_views`, but with all training noise on: the paper's 'noised teacher' ablation (Table 6)."""
    policy = policies.build_policy(lesson.learner.augment, lesson.resolution)
    clean = clean_views(lesson, images, batch_size)

    def views(rows: NDArray[np.int64]) -> Iterator[Tensor]:
        first = int(rows[0]) if len(rows) else 0
        for batch in clean(rows):
            model.noise.draw(
                lesson.seed, first, torch.ones(len(batch), dtype=torch.bool, device=lesson.device)
            )
            drawn = plan.draw(policy, lesson.seed, "labeling", first, len(batch), lesson.resolution)
            yield ops.apply(batch, drawn)
            first += len(batch)

    return views


def probabilities(model: nn.Module, lesson: Lesson, images: ImageSet, batch_size: int) -> NDArray[np.float32]:
    """(N, K) class probabilities of clean images."""
    views = clean_views(lesson, images, batch_size)
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
    probs = probabilities(averaged, lesson, lesson.dataset.val, batch_size=512)
    scores = suite.score(probs, lesson.dataset.val.labels)
    return {f"val_{name}": value for name, value in scores.items()}
