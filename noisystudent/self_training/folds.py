"""Predictions out of fold: every labelled image is predicted by a teacher that has not seen it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from noisystudent.config import LearnerConfig, TeacherConfig
from noisystudent.config.controls import linear_probe
from noisystudent.config.run import chooses_decay
from noisystudent.data.folds import divide
from noisystudent.errors import RunError
from noisystudent.metrics import classification, guards, scores, temperature
from noisystudent.metrics.power import LEAST_IMAGES
from noisystudent.metrics.precision import by_threshold, curve
from noisystudent.metrics.scores import Predictions
from noisystudent.models.heads import Head
from noisystudent.run.files import remove
from noisystudent.run.graph import Iteration, Model
from noisystudent.run.record import read_record
from noisystudent.run.rundir import CONTROLS, ModelDir
from noisystudent.run.stages import Stage, run_stage
from noisystudent.selection import choose
from noisystudent.self_training.context import Context
from noisystudent.self_training.finetune import finetuning
from noisystudent.self_training.heads import save_head
from noisystudent.self_training.predict import label_val, val_energies
from noisystudent.self_training.train_stage import train_unchecked
from noisystudent.self_training.trainer import fitted
from noisystudent.self_training.training import Training

Learner = TypeVar("Learner", bound=TeacherConfig)

_FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)  # of the given weight decay of a head


def weight_decays(context: Context) -> list[float]:
    """Return the weight decays of the teacher among which is chosen out of fold: of a head several."""
    given = context.config.teacher.train.weight_decay
    several = chooses_decay(context.config) and len(context.dataset.labeled) >= LEAST_IMAGES
    return list(dict.fromkeys(factor * given for factor in _FACTORS)) if several else [given]


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
    decays, trainings = weight_decays(context), list(_trainings(context, initial))

    def work() -> dict[str, object]:
        images, labels = context.dataset.labeled, context.config.students[0].pseudo_label
        probs = np.empty((len(decays), len(images), len(context.dataset.classes)), np.float32)
        energies = np.empty((len(decays), len(images)), np.float32)
        for rows, candidates in trainings:
            for number, training in enumerate(candidates):
                probs[number, rows] = label_val(training, labels, context.progress).probs
                energies[number, rows] = val_energies(training, labels, context.progress)
        losses = [classification.nll(one, images.labels) for one in probs]
        best = int(np.argmin(losses))
        scores.save_predictions(stage.path, probs[best], images.labels, energies[best])
        return {"weight_decay": decays[best], "nll": losses}

    run_stage(stage, work, context.progress)
    _check(context, scores.load_predictions(stage.path))
    return with_choices(context)


def with_choices(context: Context) -> Context:
    """Return the run with the settings that were chosen out of fold, see `_chosen`; its stage is done.

    Raises:
        RunError: the record of the stage is damaged.
    """
    stage, decays = context.graph.out_of_fold, weight_decays(context)
    if stage is None or not context.config.choose:
        return context
    result = (read_record(stage.record) or {}).get("result")
    if len(decays) > 1 and result is not None:
        context = _with_decay(context, result["weight_decay"], dict(zip(decays, result["nll"], strict=True)))
    return _chosen(context, scores.load_predictions(stage.path))


def out_of_fold(context: Context) -> Predictions | None:
    """Return the predictions for the labelled images, in their order; None without folds."""
    stage = context.graph.out_of_fold
    return None if stage is None else scores.load_predictions(stage.path)


def _trainings(
    context: Context, initial: ModelDir | None
) -> Iterator[tuple[NDArray[np.int64], list[Training]]]:
    """Train the teacher of each fold unless this was done; yield the rows it has not seen, and its trainings.

    In them, these rows take the place of val. There is one for each of the `weight_decays`.
    """
    models, images = context.graph.folds, context.dataset.labeled
    fold_of = divide(images.content_hash, images.labels, len(models), context.config.seed)
    for fold, model in enumerate(models):
        unseen = np.flatnonzero(fold_of == fold)
        rest = images.subset(np.flatnonzero(fold_of != fold))
        learner = _with_steps_of_teacher(context, len(images) / len(rest))
        training = replace(
            context.training(learner, ModelDir(model.training.path), f"iteration-0/{model.training.name}"),
            dataset=replace(context.dataset, labeled=rest, val=images.subset(unseen)),
            initial=initial,
            new_head=initial is not None,
        )
        if len(weight_decays(context)) > 1:
            yield unseen, _train_heads(context, model.training, training)
            continue
        train_unchecked(context, model.training, training)
        last = context.last_training(training, model)
        if model.finetuning is not None:
            train_unchecked(context, model.finetuning, last)
        yield unseen, [last]


def _train_heads(context: Context, stage: Stage, training: Training) -> list[Training]:
    """Train a head with each of the `weight_decays` unless this was done, and return their trainings.

    Only the heads are written: a copy of the backbone for each would fill the disk.
    """
    candidates = []
    for number, decay in enumerate(weight_decays(context), start=1):
        train = replace(training.learner.train, weight_decay=decay)
        learner, folder = replace(training.learner, train=train), stage.path / f"weight-decay-{number}"
        candidates.append(replace(training, learner=learner, folder=ModelDir(folder), curve=False))

    def work() -> None:
        for one in candidates:
            if not one.folder.weights.is_file():  # it is written last
                head = fitted(one, None, context.progress, None)
                assert isinstance(head, Head)
                assert one.cache is not None
                save_head(head, one.learner.model, one.cache, one.folder.weights, {}, alone=True)
                remove(one.folder.checkpoints)

    run_stage(stage, work, context.progress)
    return candidates


def _with_decay(context: Context, decay: float, losses: dict[float, float]) -> Context:
    """Return the run with the chosen weight decay of the teacher; that of students changes in proportion."""
    factor = decay / context.config.teacher.train.weight_decay
    others = ", ".join(f"{loss:.3f} at {other:g}" for other, loss in losses.items())
    context.progress.say(
        f"out-of-fold: the weight decay of heads is {decay:g}; negative log-likelihood {others}"
    )

    def scaled(learner: Learner) -> Learner:
        train = learner.train
        # A fine-tuning has the weight decay of its head: the chosen one is not for a whole network.
        if not train.features or learner.finetune is not None:
            return learner
        return replace(learner, train=replace(train, weight_decay=factor * train.weight_decay))

    given, graph = context.config, context.graph
    teachers, students = tuple(map(scaled, given.teachers)), tuple(map(scaled, given.students))
    config = replace(given, teacher=scaled(given.teacher), teachers=teachers, students=students)
    probe = linear_probe(config)  # its settings may be fixed

    def models(of: Iterable[Model]) -> tuple[Model, ...]:
        fixed = {CONTROLS["linear_probe"]: probe}
        return tuple(replace(model, config=fixed.get(model.role) or scaled(model.config)) for model in of)

    iterations = tuple(
        replace(
            one, config=scaled(one.config), student=models([one.student])[0], controls=models(one.controls)
        )
        for one in graph.iterations
    )
    return replace(
        context,
        config=config,
        graph=replace(graph, teachers=models(graph.teachers), iterations=iterations),
    )


def _with_steps_of_teacher(context: Context, shorter: float) -> LearnerConfig:
    """Return the teacher's configuration with its steps and its schedule, for epochs of fewer images.

    Args:
        context: the run.
        shorter: the teacher's labelled images for each of the fold's.
    """
    config = context.config.teacher
    assert context.graph.teacher is not None  # with folds all first teachers are trained
    teacher = context.training(config, ModelDir(context.graph.teacher.training.path), "iteration-0")
    second = config.finetune
    if second is not None:
        second = replace(second, steps=finetuning(teacher, second).total_steps, epochs=None)
    train = replace(
        config.train,
        steps=teacher.total_steps,
        epochs=None,
        warmup_epochs=shorter * config.train.warmup_epochs,
        decay_epochs=shorter * config.train.decay_epochs,
    )
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
