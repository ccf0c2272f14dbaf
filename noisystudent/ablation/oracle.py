"""The oracle: the control of the base, trained on the true labels of the labelled images and the pool."""

from __future__ import annotations

import dataclasses
from typing import Any

from noisystudent.config import Config, DataConfig, StudentConfig, TeacherConfig
from noisystudent.config.run import NO_CONTROL
from noisystudent.data.sources import open_source
from noisystudent.errors import InputError
from noisystudent.self_training.models import with_rate
from noisystudent.train.optim import peak_lr


def oracle(config: Config, folders: tuple[str, ...]) -> Config:
    """Configuration of a run of one teacher that differs from the control of `config` in its images alone.

    Network, noise, schedule, steps and images per step are the same. If the weights of the control start from
    those of a teacher, the oracle starts from scratch. If fine-tuning has no learning rate of its own, it has
    `1 + unlabeled_ratio` times as many images per step as in the control, because the learning rate of the
    training is scaled by the batch size.

    Args:
        config: configuration with a student and its control.
        folders: images with their true labels.

    Raises:
        InputError: the base has no control, there are no test images to compare on, or no labelled images.
    """
    if not config.students or config.control == NO_CONTROL:
        raise InputError(
            "--all-labels needs a base with a student and a control, from which the gap is measured"
        )
    if not config.data.test:
        raise InputError(
            "--all-labels needs --test; val is split off the labels, so it would not be the same set"
        )
    student = config.students[-1]
    if student.train.pool_epochs is not None or len(student.unlabeled_ratio) > 1:
        raise InputError(
            "--all-labels needs a base with train.epochs or train.steps and one unlabeled_ratio; the oracle"
            " has no pool, from which the length and the growing batches of its control could be known"
        )
    data = dataclasses.replace(config.data, labeled=folders, unlabeled=())
    try:
        counts = _labels(config.data), _labels(data)
    except InputError as error:
        raise InputError(f"--all-labels: {error}") from error
    return Config(
        name=config.name,
        seed=config.seed,
        device=config.device,
        control=NO_CONTROL,
        data=data,
        teacher=_teacher(student, *counts, student.model.resolution or data.resolution),
        evaluate=config.evaluate,
    )


def _labels(data: DataConfig) -> int:
    """Number of labelled images that are trained on, if none has to be left out."""
    count = len(open_source(data.labeled, labeled=True))
    return count if data.val else count - max(1, round(count * data.val_fraction))


def _teacher(student: StudentConfig, few: int, many: int, resolution: int) -> TeacherConfig:
    """The control of a student as the teacher of a run, on `many` labelled images instead of `few`.

    A control has labelled images in the rows of the batch that a student fills from the pool. But its epochs
    and its learning rate refer to `batch_size` only, without those rows. A teacher has all rows in
    `batch_size`, so epochs and learning rate are converted.
    """
    train, _ = with_rate(student, resolution, from_weights=bool(student.model.pretrained))
    per_label = 1 + student.unlabeled_ratio[-1]  # images of a batch for each of `batch_size`
    rows = train.batch_size * per_label
    # Epochs of the oracle in as many steps as one epoch of the control takes.
    longer = (few / train.batch_size) / (many / rows)
    steps = train.steps or max(1, round((train.epochs or 0) * few / train.batch_size))
    changed: dict[str, Any] = {
        "steps": steps,
        "epochs": None,
        "batch_size": rows,
        "lr": peak_lr(train) * 256 / rows,
        "warmup_epochs": train.warmup_epochs * longer,
        "decay_epochs": train.decay_epochs * longer,
    }
    finetune = student.finetune
    if finetune is not None:
        size = finetune.batch_size or train.batch_size
        tail = finetune.steps or max(1, round((finetune.epochs or 0) * few / size))
        if finetune.lr is None:  # the learning rate then continues the training's, which is for more rows
            size *= per_label
        finetune = dataclasses.replace(finetune, steps=tail, epochs=None, batch_size=size)
    train = dataclasses.replace(train, **changed)
    return TeacherConfig(model=student.model, augment=student.augment, train=train, finetune=finetune)
