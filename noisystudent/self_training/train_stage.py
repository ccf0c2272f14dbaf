"""A training as a stage of a run: train, predict val, and stop the run if the model is useless."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from noisystudent.distributed import group
from noisystudent.errors import RunError
from noisystudent.inference.load import stored_temperature
from noisystudent.metrics import classification, guards, temperature
from noisystudent.metrics.paired import below, compare
from noisystudent.metrics.power import LEAST_IMAGES
from noisystudent.run.files import remove
from noisystudent.run.graph import Model
from noisystudent.run.stages import Stage, run_stage
from noisystudent.runtime import release_memory
from noisystudent.self_training.context import Context
from noisystudent.self_training.first_teachers import judged
from noisystudent.self_training.predict import predictions
from noisystudent.self_training.trainer import train
from noisystudent.self_training.training import Training
from noisystudent.train import checkpoint, journal


def train_model(context: Context, stage: Stage, training: Training) -> None:
    """Train a model unless this was done, and check its predictions on val.

    Args:
        context: the run.
        stage: stage of the training.
        training: its settings; its folder is that of the stage.

    Raises:
        RunError: the training diverged, the model is useless (see `guards.fault`), or the disk is full.
        Stopped: a signal was received. Another call resumes.
    """

    train_unchecked(context, stage, training)
    # Outside the stage: the check must also stop a run that is started again.
    _check_model(context, stage, training)


def train_unchecked(context: Context, stage: Stage, training: Training) -> None:
    """Train a model unless this was done. It is not judged by val.

    Raises:
        RunError: the training diverged, or the disk is full.
        Stopped: a signal was received. Another call resumes.
    """

    def work() -> None:
        _train(context, stage, training)
        # A copy, and as large as the pseudo-labels.
        group().lead(lambda: remove(training.folder.targets))

    # A head on cached features is too small to be shared.
    run_stage(stage, work, context.progress, shared=training.cache is None)
    release_memory()  # of the model and its optimiser: the next stage has its own


def finetune_model(context: Context, model: Model, training: Training) -> Training:
    """Fine-tune a model if this is configured, and return its last training.

    Args:
        context: the run.
        model: its stages.
        training: its finished first training.

    Raises:
        RunError: see `train_model`.
        Stopped: see `train_model`.
    """
    last = context.last_training(training, model)
    if model.finetuning is not None:
        train_model(context, model.finetuning, last)
    return last


def _train(context: Context, stage: Stage, training: Training) -> None:
    pool = None if training.read_pool is None else training.read_pool()
    context.progress.say(f"{stage.name}: {training.describe(pool)}")
    board = group().lead(partial(_board, context, stage, training))

    def show(step: int, loss: float) -> None:
        context.progress.advance(stage.name, step, training.total_steps, f"loss {loss:.3f}")

    main = group().is_main
    try:
        train(training, pool, context.progress, board.draw if main else None, show=show if main else None)
    except RunError as error:
        raise RunError(f"{stage.name}: {error}") from error


def _board(context: Context, stage: Stage, training: Training) -> journal.Board:
    """Return the learning curves of a training, with all points up to its last snapshot.

    A killed training has drawn points after it.
    """
    board = journal.Board(context.run.tensorboard(stage.name))
    snapshot = checkpoint.newest(training.folder.checkpoints, context.progress)
    for line in [] if snapshot is None else journal.read(checkpoint.journal(snapshot)):
        board.draw(line)
    return board


def _check_model(context: Context, stage: Stage, training: Training) -> None:
    """Raise RunError if a teacher or student has collapsed or is at chance level, see `guards.fault`."""
    probs, labels = predictions(training, "val", context.progress)
    bins, fitted = context.config.evaluate.ece_bins, stored_temperature(training.folder.weights)
    line = f"{stage.name}: val top-1 {classification.top_k(probs, labels, 1):.1%} of {len(labels):,} images"
    if fitted != 1:
        before, after = (
            classification.ece(p, labels, bins) for p in (probs, temperature.scaled(probs, fitted))
        )
        line += f"; at temperature {fitted} its ECE is {after:.3f}, not {before:.3f}"
    context.progress.say(line)
    if stage.name.startswith("control-"):
        return  # no model is trained on the predictions of a control
    iterations = context.graph.iterations
    last = iterations[-1].student if iterations else None  # the only model that is not a teacher
    is_teacher = last is not None and stage not in (last.training, last.finetuning)
    # A teacher at chance level gives useless labels without any error message, as in issue 9 of the published
    # code.
    fault = guards.fault(labels, probs, is_teacher=is_teacher)
    if fault is not None:
        raise RunError(f"{stage.name}: {fault}")
    if len(labels) < LEAST_IMAGES:
        _warn_of_chance(context, stage, guards.at_chance(labels, probs, is_teacher=is_teacher))
    elif is_teacher:
        _compare_with_teacher(context, stage, classification.correct(probs, labels))


def _warn_of_chance(context: Context, stage: Stage, sentence: str | None) -> None:
    """Print that a model looks like chance on a val set that is too small to stop the run by it."""
    enough = context.graph.out_of_fold is not None and len(context.dataset.labeled) >= LEAST_IMAGES
    first = stage.name.startswith("teacher")
    # Out of fold, a first teacher was better than chance, on more images; see `folds`.
    if sentence is None or (enough and first):
        return
    context.progress.say(
        f"warning: {stage.name}: {sentence}; val has {len(context.dataset.val):,} images, too few to stop the"
        f" run by it; give {'--folds 5 or more labels' if first else 'more val images'}"
    )


def _compare_with_teacher(context: Context, stage: Stage, right: NDArray[np.bool_]) -> None:
    """Raise RunError, or print a warning, if a student is significantly worse on val than its teacher."""
    graph, config = context.graph, context.config
    # Several first teachers, or one that was not trained here, have no predictions of a training.
    first = graph.teacher if len(graph.teachers) == 1 else None
    models = [first, *(iteration.student for iteration in graph.iterations)]
    for before, model in pairwise(models):
        if model is None or stage is not model.last:
            continue
        if before is None:
            teacher = judged(context, "val")
        else:
            teacher = predictions(context.trainings(before)[1], "val", context.progress)
        comparison = compare(right, classification.correct(*teacher), config.evaluate, config.seed)
        if not below(comparison, config.evaluate.level):
            continue
        line = (
            f"{stage.name}: worse than its teacher by {-100 * comparison['difference']:.1f} points on "
            f"{comparison['n']:,} val images (p = {comparison['p_value']:.2g}), so it should not label the "
            "pool; change selection.threshold, or train it longer"
        )
        if not config.keep_going:
            raise RunError(f"{line}; --keep-going takes it as the next teacher anyway")
        context.progress.say(f"warning: {line}")
