"""Predictions out of fold: every labelled image is predicted by a teacher that has not seen it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from noisystudent.config import LearnerConfig, TeacherConfig
from noisystudent.data.folds import divide
from noisystudent.errors import RunError
from noisystudent.metrics import classification, guards, scores, temperature
from noisystudent.metrics.power import LEAST_IMAGES
from noisystudent.metrics.precision import by_threshold, curve
from noisystudent.metrics.scores import Predictions
from noisystudent.run.graph import Iteration
from noisystudent.run.rundir import ModelDir
from noisystudent.run.stages import run_stage
from noisystudent.selection import choose
from noisystudent.self_training.context import Context
from noisystudent.self_training.finetune import finetuning
from noisystudent.self_training.predict import label_val
from noisystudent.self_training.train_stage import train_unchecked
from noisystudent.self_training.training import Training


def predict_out_of_fold(context: Context, initial: ModelDir | None) -> Context:
    """Train the teachers of the folds, store what they predict, and choose settings of the students by it.

    Without folds nothing is done. The images of val are in no fold: they stay unseen by every model.

    Args:
        context: the run.
        initial: folder of the weights that the first teacher starts from; None: see `Training.initial`.

    Returns:
        The run with the chosen settings, see `_chosen`.

    Raises:
        InputError: there are fewer labelled images than folds.
        RunError: val is small and the predictions out of fold are at chance level, or a training diverged.
        Stopped: a signal was received. Another call resumes.
    """
    stage = context.graph.out_of_fold
    if stage is None:
        return context
    trainings = list(_trainings(context, initial))

    def work() -> None:
        images = context.dataset.labeled
        probs = np.empty((len(images), len(context.dataset.classes)), np.float32)
        for rows, training in trainings:
            labels = context.config.students[0].pseudo_label
            probs[rows] = label_val(training, labels, training.dataset.val, context.progress).probs
        scores.save_predictions(stage.path, probs, images.labels)

    run_stage(stage, work, context.progress)
    predicted = scores.load_predictions(stage.path)
    _check(context, predicted)
    return _chosen(context, predicted) if context.config.choose else context


def out_of_fold(context: Context) -> Predictions | None:
    """Return the predictions for the labelled images, in their order; None without folds."""
    stage = context.graph.out_of_fold
    return None if stage is None else scores.load_predictions(stage.path)


def _trainings(context: Context, initial: ModelDir | None) -> Iterator[tuple[NDArray[np.int64], Training]]:
    """Train the teacher of each fold unless this was done; yield the rows it has not seen, and its training.

    In its training, these rows take the place of val.
    """
    models, images = context.graph.folds, context.dataset.labeled
    learner = _with_steps_of_teacher(context)
    fold_of = divide(images.content_hash, images.labels, len(models), context.config.seed)
    for fold, model in enumerate(models):
        unseen = np.flatnonzero(fold_of == fold)
        rest = images.subset(np.flatnonzero(fold_of != fold))
        training = replace(
            context.training(learner, ModelDir(model.training.path), f"iteration-0/{model.training.name}"),
            dataset=replace(context.dataset, labeled=rest, val=images.subset(unseen)),
            initial=initial,
            new_head=initial is not None,
        )
        train_unchecked(context, model.training, training)
        last = context.last_training(training, model)
        if model.finetuning is not None:
            train_unchecked(context, model.finetuning, last)
        yield unseen, last


def _with_steps_of_teacher(context: Context) -> LearnerConfig:
    """Return the teacher's configuration with its number of steps: epochs of fewer images would be fewer."""
    config = context.config.teacher
    assert context.graph.teacher is not None  # with folds all first teachers are trained
    teacher = context.training(config, ModelDir(context.graph.teacher.training.path), "iteration-0")
    second = config.finetune
    if second is not None:
        second = replace(second, steps=finetuning(teacher, second).total_steps, epochs=None)
    train = replace(config.train, steps=teacher.total_steps, epochs=None)
    return TeacherConfig(model=config.model, augment=config.augment, train=train, finetune=second)


def _check(context: Context, predicted: Predictions) -> None:
    """Print the accuracy, and stop the run if it is at chance level and val is too small to tell.

    Raises:
        RunError: it is.
    """
    probs, labels = predicted
    right, name = classification.correct(probs, labels), "out-of-fold"
    context.progress.say(f"{name}: top-1 {right.mean():.1%} of {len(labels):,} labelled images")
    rows = curve(probs.max(axis=1), right)
    context.progress.say(f"{name}: right labels by confidence: {by_threshold(rows)}")
    if len(context.dataset.val) >= LEAST_IMAGES or len(labels) < LEAST_IMAGES:
        return
    chance = guards.at_chance(labels, probs, is_teacher=True, images="labelled images out of fold")
    if chance is not None:
        raise RunError(f"{name}: {chance}; the run stops before it labels anything with such a model")


def _chosen(context: Context, predicted: Predictions) -> Context:
    """Return the run with threshold or strength, and temperature, that are chosen out of fold.

    The predictions are those of first teachers, and the choice is for the labels of all teachers: a student
    has seen every label, so no labels are left to choose on for its own.
    """
    fitted = temperature.fit(*predicted) if len(predicted.labels) >= LEAST_IMAGES else None
    iterations = [
        _choose(iteration, predicted, fitted, filtered=context.graph.filter is not None)
        for iteration in context.graph.iterations
    ]
    # Mostly all students have the same settings.
    for line in dict.fromkeys(iteration.chosen for iteration in iterations):
        names = [f"student-{iteration.index}" for iteration in iterations if iteration.chosen == line]
        context.progress.say(f"{', '.join(names)}: {line}")
    return replace(context, graph=replace(context.graph, iterations=tuple(iterations)))


def _choose(
    iteration: Iteration, predicted: Predictions, fitted: float | None, *, filtered: bool
) -> Iteration:
    """The iteration with its chosen settings; `fitted` is the temperature, None to keep the given one."""
    config, labels = iteration.config, iteration.config.pseudo_label
    if filtered:
        selection, sentence = config.selection, "the filter selects, so no threshold is chosen out of fold"
    else:
        selection, sentence = choose(config.selection, *predicted)
    if fitted is not None:
        labels = replace(labels, temperature=fitted)
        sentence += f"; pseudo_label.temperature is {fitted:g}, fitted out of fold"
    return replace(
        iteration, config=replace(config, selection=selection, pseudo_label=labels), chosen=sentence
    )
