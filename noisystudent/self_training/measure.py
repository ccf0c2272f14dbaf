"""The pace and the memory of a training and of a prediction, measured on a few steps and batches."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain, cycle, islice

import numpy as np
import torch

from noisystudent import memory
from noisystudent.console import Progress
from noisystudent.data.loader import SelectedPool
from noisystudent.inference.joint import Stream
from noisystudent.inference.predictor import Predictor
from noisystudent.models.classifier import Classifier
from noisystudent.records import Batch
from noisystudent.run.fingerprint import fingerprint
from noisystudent.runtime import release_memory
from noisystudent.self_training.noise import batches_at_once
from noisystudent.self_training.phases import Phase, Rows
from noisystudent.self_training.trainer import write_weights
from noisystudent.self_training.training import Training, batches, start, train_step
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.execution import Executor
from noisystudent.train.loop import initial_state
from noisystudent.train.step import TrainStep

SECONDS = 1.0  # that a measurement takes, unless fewer steps are longer
_LEAST = 3  # steps or batches of a measurement
_WARM_STEPS, _WARM_STEPS_ON_GPU = 2, 6  # not measured: buffers are allocated, and a CUDA graph is captured
_PARTS = 8  # in which a batch is computed first, so that one that does not fit is never computed as a whole

# Fields of `train` that no step takes longer for.
_FREE = (
    *("epochs", "steps", "pool_epochs", "label_tail", "lr", "schedule", "decay_epochs", "warmup_epochs"),
    *("layer_decay", "head_lr_scale", "momentum", "weight_decay", "label_smoothing", "ema_decay"),
    *("log_steps", "eval_steps", "checkpoint_steps"),
)


@dataclass(frozen=True, slots=True)
class MeasuredTraining:
    """What a few steps of a training took.

    Attributes:
        training: the training. Its folder has the weights after these steps.
        seconds: duration of a step by the labelled and pool images of its batch.
        peak_bytes: largest memory. If the batch does not fit, it was foreseen from parts of the batch.
        disk_bytes: size of the weights.
    """

    training: Training
    seconds: Mapping[Rows, float]
    peak_bytes: int
    disk_bytes: int


def key_of(training: Training, *, pool: bool) -> str:
    """Return a digest that is equal for trainings whose steps take the same time and memory."""
    train = {name: value for name, value in asdict(training.learner.train).items() if name not in _FREE}
    rows = sorted({phase.rows for phase in training.phases(pool=pool)})
    features = None if training.cache is None else training.cache.path
    labels = training.ema is not None and pool
    network, noise = training.learner.model, training.learner.augment
    return fingerprint(
        network, noise, train, rows, training.resolution, len(training.dataset.classes), features, labels
    )


def measure_training(training: Training, pool: SelectedPool | None, progress: Progress) -> MeasuredTraining:
    """Run a few steps of each phase of a training as it runs them, and write its weights.

    A batch is computed in parts first. If their memory shows that a whole batch would not fit, no whole batch
    is computed, and the time is that of the parts.

    Args:
        training: the training; its folder is a temporary one.
        pool: the pool images, if it has any.
        progress: a signal stops the measurement between two steps.
    """
    ema = training.ema if pool is not None else None
    model, noise = start(training, ema, progress)
    step = train_step(training, noise, ema)
    state = initial_state(model, step)
    seconds: dict[Rows, float] = {}
    used = 0
    phases = {phase.rows: phase for phase in training.phases(pool=pool is not None)}
    for rows, phase in phases.items():
        # The moving average labels from some step on, and most steps come after it.
        first = phase.start if ema is None else min(max(phase.start, ema.first_step), phase.stop - 1)
        stream = noise.batches(batches(training, pool, first, phase.stop), first)
        with closing(_checked(stream, progress)) as checked:
            state.step = first
            seconds[rows], foreseen = _measure_phase(training, phase, step, state, checked)
        used = max(used, foreseen)
    averaged = state.ema.module
    if isinstance(averaged, Classifier):
        averaged.merge_lora()
    training.folder.path.mkdir(parents=True, exist_ok=True)
    write_weights(training, averaged)
    del model, noise, step, state, averaged
    release_memory()
    return MeasuredTraining(training, seconds, used, training.folder.weights.stat().st_size)


def measure_prediction(model: Predictor, views: Stream, count: int, progress: Progress) -> tuple[float, int]:
    """Predict some batches of an image set, in the form that the prediction of `count` images takes.

    Returns:
        Seconds of an image, and the largest memory in bytes.
    """
    ready, size = model.prepared(count, progress=progress)
    # Again from the first image on, so that one batch of few images is not measured cold.
    places = islice(cycle(range(0, count, size)), max(-(-count // size), 1 + _LEAST))
    rows = (np.arange(at, min(at + size, count)) for at in places)

    def predicted() -> Generator[int]:
        for batch in views(rows):
            progress.check()
            yield len(ready(batch).cpu())

    with memory.peak(model.device) as peak, closing(predicted()) as pieces:
        seconds = _pace(pieces, 1 + _LEAST, model.device, warm=1)
    return seconds, peak.used


def _measure_phase(
    training: Training, phase: Phase, step: TrainStep, state: TrainState, stream: Iterator[Batch]
) -> tuple[float, int]:
    """Seconds of a step of a phase, measured from `state.step` on, and its largest memory in bytes."""
    device, first = training.device, next(stream)
    most = memory.limit(device)
    foreseen = None if training.cache is not None else _foreseen(step, state, first, phase.stop)
    if foreseen is not None and most is not None and foreseen[1] > most:
        return foreseen
    left, on_gpu = phase.stop - state.step, device.type == "cuda"
    group, least = 1, _LEAST
    if not on_gpu and training.cache is None:
        group = batches_at_once(first.images.numel())
    if not training.sets.labeled.at(training.resolution).resident:
        least += 2 * training.workers  # they have decoded some batches when the first one arrives
    execute = Executor(step, state, Progress(), left)

    def steps() -> Iterator[int]:
        for batch in chain([first], stream):
            execute(batch)
            yield sum(phase.rows)

    warm = _WARM_STEPS_ON_GPU if on_gpu else _WARM_STEPS
    with memory.peak(device) as peak:
        seconds = _pace(steps(), left, device, warm=warm, least=least, group=group)
    return seconds * sum(phase.rows), peak.used


def _foreseen(step: TrainStep, state: TrainState, batch: Batch, stop: int) -> tuple[float, int] | None:
    """Seconds and memory of a step on a whole batch, from steps in parts; None if it cannot be divided.

    The memory grows linearly with the size of a part.
    """
    whole = step.config.accumulate
    parts = min(
        _PARTS, min(len(rows) for rows in (batch.labels, batch.pool_targets) if len(rows)) // (2 * whole)
    )
    if parts < 2 or (step.teacher is not None and step.teacher.fairness):
        return None
    device, before = state.window.device, state.step
    measured = []
    for number in (parts, parts, parts // 2):  # the first step allocates the state of the optimiser
        config = replace(step.config, accumulate=whole * number, execution="eager")
        execute = Executor(replace(step, config=config), state, Progress(), stop - before)
        with memory.peak(device) as peak:
            begin = time.perf_counter()
            execute(batch)
            _wait(device)
            measured.append((time.perf_counter() - begin, peak.used, number))
        state.step = before
    (_, _, _), (seconds, small, _), (_, large, number) = measured
    # Both are a constant and a share of the batch: 1 / parts and 1 / number.
    slope = max(0, large - small) / (1 / number - 1 / parts)
    return seconds, small + round(slope * (1 - 1 / parts))


def _pace(
    pieces: Iterator[int],
    total: int,
    device: torch.device,
    *,
    warm: int,
    least: int = _LEAST,
    group: int = 1,
) -> float:
    """Seconds of an image in the first of `total` pieces of work, each of as many images as it yields.

    Args:
        pieces: does the work.
        total: number of all pieces. If they are few, all are measured, and none is warm.
        device: device of the work.
        warm: number of first pieces that are not measured.
        least: smallest number of pieces that are measured.
        group: the number of measured pieces is a multiple of it: their preparation is shared.
    """
    if total >= warm + group:
        for _ in islice(pieces, warm):
            pass
    _wait(device)
    done, images, begin = 0, 0, time.perf_counter()
    for count in pieces:
        done, images = done + 1, images + count
        if done >= least and done % group == 0 and time.perf_counter() - begin >= SECONDS:
            break
    _wait(device)
    return (time.perf_counter() - begin) / images


def _wait(device: torch.device) -> None:
    """Wait until a GPU has done all its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _checked(stream: Iterator[Batch], progress: Progress) -> Generator[Batch]:
    """Yield the batches until a signal stops the work."""
    for batch in stream:
        progress.check()
        yield batch
