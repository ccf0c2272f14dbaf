"""What all labels would give: the base's control, trained on the truth of labels and pool."""

from __future__ import annotations

import dataclasses
from typing import Any

from noisystudent.config import Config, DataConfig, StudentConfig, TeacherConfig
from noisystudent.data.sources import open_source
from noisystudent.errors import InputError


def ceiling(config: Config, folders: tuple[str, ...]) -> Config:
    """The run of one teacher that is the control of `config` in everything but its labelled images.

    Same network, noise, schedule, steps and images a step; where the control's weights start from a
    teacher's, these start from scratch. A finetuning at the training's rate sees `1 + unlabeled_ratio` times
    as many images a step, since that rate goes with the size of the batch.

    Args:
        config: with a student and its control.
        folders: labelled images.

    Raises:
        InputError: there is no such control, no test images to compare on, or no images.
    """
    if not config.students or not config.control:
        raise InputError("--all-labels needs a base with a student and its control to measure the gap from")
    if not config.data.test:
        raise InputError("--all-labels needs --test: val is another set where other labels are split")
    data = dataclasses.replace(config.data, labeled=folders, unlabeled=())
    try:
        counts = _labels(config.data), _labels(data)
    except InputError as error:
        raise InputError(f"--all-labels: {error}") from error
    return Config(
        name=config.name,
        seed=config.seed,
        device=config.device,
        control=False,
        data=data,
        teacher=_twin(config.students[-1], *counts),
        evaluate=config.evaluate,
    )


def _labels(data: DataConfig) -> int:
    """Labelled images that are trained on, if every one can be used."""
    count = len(open_source(data.labeled, labeled=True))
    return count if data.val else count - max(1, round(count * data.val_fraction))


def _twin(student: StudentConfig, few: int, many: int) -> TeacherConfig:
    """The learner of a student's control, on `many` labelled images instead of `few`.

    A control fills the pool's rows of a batch with labelled images but counts epochs and scales its learning
    rate by `batch_size` alone. Here the rows are one batch, so both are converted.
    """
    train = student.train
    rows = train.batch_size * (1 + student.unlabeled_ratio)
    longer = (few / train.batch_size) / (many / rows)  # epochs here for one epoch of the control
    steps = train.steps or max(1, round((train.epochs or 0) * few / train.batch_size))
    changed: dict[str, Any] = {
        "steps": steps,
        "epochs": None,
        "batch_size": rows,
        "lr": train.lr * train.batch_size / rows,
        "warmup_epochs": train.warmup_epochs * longer,
        "decay_epochs": train.decay_epochs * longer,
    }
    finetune = student.finetune
    if finetune is not None:
        size = finetune.batch_size or train.batch_size
        tail = finetune.steps or max(1, round((finetune.epochs or 0) * few / size))
        if finetune.lr is None:  # the rate is then the training's, for its size of a batch
            size *= 1 + student.unlabeled_ratio
        finetune = dataclasses.replace(finetune, steps=tail, epochs=None, batch_size=size)
    train = dataclasses.replace(train, **changed)
    return TeacherConfig(model=student.model, augment=student.augment, train=train, finetune=finetune)
