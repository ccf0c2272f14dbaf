"""The control of the same compute: the image passes of a whole run, and the steps that they are."""

from __future__ import annotations

from dataclasses import replace

from noisystudent.config import PseudoLabelConfig, StudentConfig, TeacherConfig
from noisystudent.run.rundir import ModelDir
from noisystudent.self_training.context import Context
from noisystudent.self_training.training import Training, finetuning

FORWARD = 1 / 3
"""Image passes that the labelling of an image counts as: a backward pass costs about two forward passes."""


def image_passes(context: Context) -> dict[str, float]:
    """Image passes of every part of a run but the controls and the evaluation: name of the part -> passes.

    A pass is one image in one step of a training. Networks and resolutions of other sizes count the same. The
    labelling of the pool counts `FORWARD` for each view and teacher, and so do labels that are made in the
    steps of a student.
    """
    config, folder, passes = context.config, ModelDir(context.run.path), dict[str, float]()
    pool = len(context.dataset.pool)
    if config.pretrain is not None:
        passes["pretraining"] = _trained(context.on_pool_folders(config.pretrain, folder))
    passes["teacher"] = config.ensemble * _trained(context.training(config.teacher, folder, "passes"))
    if config.filter is not None:
        passes["filter"] = _trained(context.training(config.filter, folder, "passes"))
        passes["filter labels"] = FORWARD * pool * _views(config.students[0].pseudo_label)
    for index, student in enumerate(config.students, start=1):
        training = replace(context.training(student, folder, "passes"), joint=student.joint)
        views = _views(student.pseudo_label) * (config.ensemble if index == 1 else 1)
        passes[f"labels {index}"] = FORWARD * pool * views
        if student.pseudo_label.on_the_fly:
            passes[f"labels {index}"] += FORWARD * views * training.total_steps * _pool_rows(training)
        passes[f"student {index}"] = _trained(training)
    return passes


def lengthened(context: Context, control: Training) -> Training:
    """Return the training of a control with as many image passes as the whole run, its fine-tuning included.

    The schedule of the learning rate is stretched. The weights do not start from those of a teacher, which
    may have seen the pool.
    """
    rows = sum(control.rows(None))
    own = _trained(control) - control.total_steps * rows  # of the fine-tuning
    steps = max(control.total_steps, round((sum(image_passes(context).values()) - own) / rows))
    train = replace(control.learner.train, steps=steps, epochs=None)
    return replace(control, learner=replace(control.learner, train=train), initial=None)


def _trained(training: Training) -> int:
    """Image passes of a training and of its fine-tuning."""
    config = training.learner.finetune if isinstance(training.learner, TeacherConfig) else None
    parts = [training] if config is None else [training, finetuning(training, config)]
    return sum(part.total_steps * sum(part.rows(None)) for part in parts)


def _pool_rows(training: Training) -> int:
    """Pool images per step of a student."""
    assert isinstance(training.learner, StudentConfig)
    rows = sum(training.rows(None))
    return rows - training.learner.train.batch_size if training.joint else rows


def _views(config: PseudoLabelConfig) -> int:
    """Forward passes of one teacher for the label of an image."""
    return len(config.scales) * (2 if config.flip else 1)
