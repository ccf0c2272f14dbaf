"""Runs a training: batches, noise and steps, evaluations on val, and the weights in the end."""

from __future__ import annotations

from functools import partial

from torch import nn

from noisystudent.console import Progress
from noisystudent.data.loader import SelectedPool
from noisystudent.distributed import group
from noisystudent.metrics import scores, temperature
from noisystudent.models.classifier import Classifier
from noisystudent.models.heads import Head
from noisystudent.models.weights import TEMPERATURE, save_weights
from noisystudent.self_training.heads import save_head
from noisystudent.self_training.training import Training, batches, start, train_step, val_probs
from noisystudent.train.log import OnLog, Show
from noisystudent.train.loop import fit


def train(
    training: Training,
    pool: SelectedPool | None,
    progress: Progress,
    on_log: OnLog | None,
    *,
    show: Show | None = None,
) -> None:
    """Train a model, and write the weights of its moving average to `training.folder.weights`.

    The metadata of the file holds the temperature that was fitted on val. An interrupted training continues
    from its last snapshot. `on_log` and `show` are those of `fit`. All processes of a run call this.

    Raises:
        RunError: the training diverged, or the disk is full.
        Stopped: a signal was received. Another call resumes.
    """
    averaged = fitted(training, pool, progress, on_log, show=show)
    if isinstance(averaged, Classifier):
        averaged.merge_lora()  # the file is of the ordinary network
    write_weights(training, averaged, _fitted_temperature(training, averaged))


def write_weights(training: Training, averaged: nn.Module, fitted_temperature: float = 1.0) -> None:
    """Write the weights of a moving average to `training.folder.weights`; LoRA is merged already.

    Raises:
        RunError: the disk is full.
    """
    metadata = {TEMPERATURE: str(fitted_temperature)}
    if training.cache is not None:
        assert isinstance(averaged, Head)
        save_head(averaged, training.learner.model, training.cache, training.folder.weights, metadata)
        return
    assert isinstance(averaged, Classifier)
    save = partial(save_weights, averaged, training.folder.weights, training.dataset.classes, metadata)
    group().lead(save)


def fitted(
    training: Training,
    pool: SelectedPool | None,
    progress: Progress,
    on_log: OnLog | None,
    *,
    show: Show | None = None,
) -> nn.Module:
    """Train a model as `train` does, and return its moving average, a `Classifier` or a `Head`.

    Only the snapshots are written.
    """
    ema = training.ema if pool is not None else None
    model, noise = group().first(partial(start, training, ema, progress))
    return fit(
        model,
        lambda start, stop: noise.batches(batches(training, pool, start, stop), start),
        train_step(training, noise, ema),
        total_steps=training.total_steps,
        steps_per_epoch=training.steps_per_epoch,
        folder=training.folder,
        progress=progress,
        # Stored labels and those of the moving average are two kinds of steps in one phase.
        kinds=len(training.phases(pool=pool is not None)) + (ema is not None and ema.first_step > 0),
        evaluate=partial(_evaluate_val, training) if training.curve else None,
        on_log=on_log,
        show=show,
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
