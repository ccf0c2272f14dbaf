"""The control of the same compute: the image passes of a whole run, and the steps that they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from noisystudent.config import FirstTeacherConfig, PseudoLabelConfig, TeacherConfig
from noisystudent.config.run import first_teachers, is_trained, labeling_teachers
from noisystudent.run.rundir import ModelDir
from noisystudent.self_training.context import Context
from noisystudent.self_training.finetune import finetuning
from noisystudent.self_training.training import Training

FORWARD = 1 / 3
"""Image passes that the labelling of an image counts as: a backward pass costs about two forward passes."""


def image_passes(context: Context, students: Sequence[Training]) -> dict[str, float]:
    """Image passes of every part of a run but the controls and the evaluation: name of the part -> passes.

    A pass is one image in one step of a training. Networks and resolutions of other sizes count the same. The
    labelling of the pool counts `FORWARD` for each view and teacher, and so do labels that are made in the
    steps of a student.
    """
    config, folder, passes = context.config, ModelDir(context.run.path), dict[str, float]()
    pool = len(context.dataset.pool)
    if config.pretrain is not None:
        passes["pretraining"] = _trained(context.on_pool_folders(config.pretrain, folder))
    first = first_teachers(config)
    trained = [_trained(context.training(each, folder, "passes")) for each in first if is_trained(each)]
    passes |= {"teacher": sum(trained), "folds": len(context.graph.folds) * sum(trained[:1])}
    labeling = [first[place] for place in labeling_teachers(config)]
    # Labels that were made elsewhere cost nothing here.
    networks = sum(not (isinstance(each, FirstTeacherConfig) and each.labels_from) for each in labeling)
    if config.filter is not None:
        passes["filter"] = _trained(context.training(config.filter, folder, "passes"))
        passes["filter labels"] = FORWARD * pool * _views(config.students[0].pseudo_label)
    for index, (student, training) in enumerate(zip(config.students, students, strict=True), start=1):
        labels = student.pseudo_label
        views = _views(labels) * (networks if index == 1 else 1)
        passes[f"labels {index}"] = FORWARD * pool * views
        if labels.on_the_fly:
            passes[f"labels {index}"] += FORWARD * views * _pool_images(training, 0)
        elif training.ema is not None:
            passes[f"labels {index}"] += FORWARD * _pool_images(training, training.ema.first_step)
        passes[f"student {index}"] = _trained(training)
    return passes


def lengthened(context: Context, control: Training, students: Sequence[Training]) -> Training:
    """Return the training of a control with as many image passes as the whole run, its fine-tuning included.

    The schedule of the learning rate is stretched. The weights do not start from those of a teacher, which
    may have seen the pool.

    Args:
        context: of the run.
        control: the training of the control of the same steps.
        students: the trainings of all students.
    """
    own = _trained(control) - control.images  # of the fine-tuning
    share = (sum(image_passes(context, students).values()) - own) / control.images
    steps = max(control.total_steps, round(share * control.total_steps))
    train = replace(control.learner.train, steps=steps, epochs=None, pool_epochs=None)
    return replace(control, learner=replace(control.learner, train=train), initial=None)


def _trained(training: Training) -> int:
    """Image passes of a training and of its fine-tuning."""
    config = training.learner.finetune if isinstance(training.learner, TeacherConfig) else None
    return training.images + (0 if config is None else finetuning(training, config).images)


def _pool_images(training: Training, start: int) -> int:
    """Pool images that a student draws from the step `start` on."""
    phases = [phase for phase in training.phases(pool=True) if phase.stop > start]
    return sum((phase.stop - max(phase.start, start)) * phase.rows[1] for phase in phases)


def _views(config: PseudoLabelConfig) -> int:
    """Forward passes of one teacher for the label of an image."""
    return len(config.scales) * (2 if config.flip else 1)
