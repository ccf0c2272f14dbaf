"""Predictions of the trained models of a run: saved ones, and ones on views with noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import tee
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.augment import ops, plan
from noisystudent.config import PseudoLabelConfig
from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet
from noisystudent.distributed import group
from noisystudent.errors import RunError
from noisystudent.inference.predictor import Predictor
from noisystudent.metrics import scores
from noisystudent.metrics.scores import Predictions
from noisystudent.models.classifier import Classifier
from noisystudent.run.aside import put_aside
from noisystudent.run.rundir import SetName
from noisystudent.self_training.features import FeatureSet
from noisystudent.self_training.training import Training, predictor_of_sets


def predictions(training: Training, name: SetName, progress: Progress) -> Predictions:
    """Return the predictions of the trained model on a set, from disk if they were saved there.

    All processes of a run call this, and share the images out.

    They depend on nothing but the weights and the images, so a damaged file is moved away and made again.

    Args:
        training: a finished training.
        name: name of the set.
        progress: receives a line if a file is damaged. A signal stops the work before it starts.

    Raises:
        Stopped: a signal was received.
    """
    path, everyone = training.folder.predictions(name), group()
    stored = everyone.lead(partial(_stored, path, progress))
    if stored is not None:
        return stored
    progress.check()
    images = training.sets.val if name == "val" else training.sets.test
    assert images is not None, "without test images val is judged"
    prepared, _ = predictor_of_sets(training).prepared(len(images), progress=progress)
    made = Predictions(prepared.probs(images), images.labels)
    everyone.lead(partial(scores.save_predictions, path, *made))
    return made


def _stored(path: Path, progress: Progress) -> Predictions | None:
    """Read saved predictions; None without an intact file."""
    if not path.is_file():
        return None
    try:
        return scores.load_predictions(path)
    except RunError as error:
        progress.say(f"{error}; kept in {put_aside(path)}; the images are predicted again")
        return None


def with_transforms(teacher: Predictor, config: PseudoLabelConfig) -> Predictor:
    """Average the probabilities over mirrored and scaled views (data distillation, arXiv 1712.04440)."""
    return replace(teacher, flip=config.flip, scales=config.scales)


def with_views(images: ImageSet, config: PseudoLabelConfig) -> ImageSet:
    """Return the images as `with_transforms` needs them: of cached features, with the mirrored view."""
    return replace(images, flip=True) if config.flip and isinstance(images, FeatureSet) else images


def label_val(teacher: Training, config: PseudoLabelConfig, progress: Progress) -> Predictions:
    """Return what a teacher predicts for val in the way in which it labels the pool, without noise."""
    if config.flip or config.scales != (1.0,):
        model, val = _of_val(teacher, config, progress)
        return Predictions(model.probs(val), val.labels)
    return predictions(teacher, "val", progress)


def val_energies(teacher: Training, config: PseudoLabelConfig, progress: Progress) -> NDArray[np.float32]:
    """Return the energies (N,) of val in the way in which a teacher labels the pool, without noise."""
    model, val = _of_val(teacher, config, progress)
    return model.energies(val)


def _of_val(teacher: Training, config: PseudoLabelConfig, progress: Progress) -> tuple[Predictor, ImageSet]:
    val = with_views(teacher.sets.val, config)
    model = with_transforms(predictor_of_sets(teacher), config)
    return model.prepared(len(val), progress=progress)[0], val


def noised_views(
    training: Training, teacher: Predictor, images: ImageSet, requests: Iterator[NDArray[np.int64]]
) -> Iterator[Tensor]:
    """Yield views (B, 3, S, S) uint8 of the rows `requests` with input noise, and draw the teacher's noise.

    This is the 'noised teacher' of Table 6.
    """
    images = images.at(training.resolution)
    policy, models = training.policy, [model for model in teacher.models if isinstance(model, Classifier)]

    def boxes(rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        # The first row serves as the step, so a resumed labelling draws the same noise.
        return plan.crop_boxes(policy, training.seed, "labeling", int(rows[0]), images.view_sizes(rows))

    requests, drawn_for = tee(requests)
    cropped = teacher.requested_views(images, requests, boxes if policy.crop == "inception" else None)
    for rows, batch in zip(drawn_for, cropped, strict=True):
        first, active = int(rows[0]), torch.ones(len(batch), dtype=torch.bool, device=training.device)
        for model in models:
            model.noise.draw(training.seed, first, active)
        size, side = len(batch), training.resolution
        yield ops.apply(batch, plan.draw(policy, training.seed, "labeling", first, size, resolution=side))
