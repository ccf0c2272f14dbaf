"""The control of the same compute: the image passes of a whole run, and the steps that they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from noisystudent.config import FirstTeacherConfig, LearnerConfig, PseudoLabelConfig, TeacherConfig
from noisystudent.config.run import first_teachers, labeling_teachers, learners, trained_teachers
from noisystudent.run.backbones import backbones
from noisystudent.run.rundir import ModelDir
from noisystudent.self_training.context import Context
from noisystudent.self_training.finetune import finetuning
from noisystudent.self_training.folds import weight_decays
from noisystudent.self_training.training import Training

FORWARD = 1 / 3
"""Image passes that the labelling of an image counts as: a backward pass costs about two forward passes."""


def image_passes(context: Context, students: Sequence[Training]) -> dict[str, float]:
    """Image passes of every part of a run but the controls and the evaluation: name of the part -> passes.

    A pass is one image in one step of a training. Networks and resolutions of other sizes count the same. The
    labelling of the pool counts `FORWARD` for each view and teacher, and so do labels that are made in the
    steps of a student. Passes through heads on features count only if every network is such a head; if one is
    trained on images, the passes that computed the features count in their place.
    """
    config, folder, passes = context.config, ModelDir(context.run.path), dict[str, float]()
    pool, heads = len(context.dataset.pool), all(one.train.features for one in learners(config).values())

    def counts(learner: LearnerConfig) -> bool:
        return heads or not learner.train.features

    def trained(training: Training) -> int:
        return _finetuned(training) + (training.images if counts(training.learner) else 0)

    if config.pretrain is not None:
        passes["pretraining"] = trained(context.on_pool_folders(config.pretrain, folder))
    first = first_teachers(config)
    teachers = [trained(context.training(each, folder, "passes")) for each in trained_teachers(config)]
    folds = len(context.graph.folds) * len(weight_decays(context))
    passes |= {"teacher": sum(teachers), "folds": folds * sum(teachers[:1])}
    if not heads:
        passes["features"] = FORWARD * sum(
            _embedded(context, learner) for learner in backbones(config).values()
        )
    labeling = [first[place] for place in labeling_teachers(config)]
    # Labels that were made elsewhere cost nothing here.
    networks = [one for one in labeling if not (isinstance(one, FirstTeacherConfig) and one.labels_from)]
    if config.filter is not None:
        passes["filter"] = trained(context.training(config.filter, folder, "passes"))
        views = _views(config.students[0].pseudo_label) if counts(config.filter) else 0
        passes["filter labels"] = FORWARD * pool * views
    for index, (student, training) in enumerate(zip(config.students, students, strict=True), start=1):
        labels = student.pseudo_label
        labelers = networks if index == 1 else [config.students[index - 2]]
        views = _views(labels) * len(labelers)
        passes[f"labels {index}"] = FORWARD * pool * _views(labels) * sum(map(counts, labelers))
        if labels.on_the_fly:
            passes[f"labels {index}"] += FORWARD * views * _pool_images(training, 0)
        elif training.ema is not None and counts(student):
            passes[f"labels {index}"] += FORWARD * _pool_images(training, training.ema.first_step)
        passes[f"student {index}"] = trained(training)
    return passes


def _embedded(context: Context, learner: LearnerConfig) -> int:
    """Views of all images whose features a backbone computes."""
    sets = context.dataset
    images = sum(len(one) for one in (sets.labeled, sets.val, sets.test, sets.pool) if one is not None)
    return images * (1 + learner.augment.flip + learner.augment.views)


def lengthened(context: Context, control: Training, students: Sequence[Training]) -> Training:
    """Return the training of a control with as many image passes as the whole run, its fine-tuning included.

    The schedule of the learning rate is stretched, but not its warm-up. The weights do not start from those
    of a teacher, which may have seen the pool.

    Args:
        context: of the run.
        control: the training of the control of the same steps.
        students: the trainings of all students.
    """
    own = _finetuned(control)
    share = (sum(image_passes(context, students).values()) - own) / control.images
    steps = max(control.total_steps, round(share * control.total_steps))
    train = control.learner.train
    stair = train.decay_epochs * steps / control.total_steps
    train = replace(train, steps=steps, epochs=None, pool_epochs=None, decay_epochs=stair)
    return replace(control, learner=replace(control.learner, train=train), initial=None)


def _finetuned(training: Training) -> int:
    """Image passes of the fine-tuning after a training."""
    config = training.learner.finetune if isinstance(training.learner, TeacherConfig) else None
    return 0 if config is None else finetuning(training, config).images


def _pool_images(training: Training, start: int) -> int:
    """Pool images that a student draws from the step `start` on."""
    phases = [phase for phase in training.phases(pool=True) if phase.stop > start]
    return sum((phase.stop - max(phase.start, start)) * phase.rows[1] for phase in phases)


def _views(config: PseudoLabelConfig) -> int:
    """Forward passes of one teacher for the label of an image."""
    return len(config.scales) * (2 if config.flip else 1)
