"""The schedule of a run: all stages, and the steps and images of each training before the first begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial

from noisystudent.distributed import group
from noisystudent.run.files import write_json
from noisystudent.run.graph import Iteration, Model
from noisystudent.run.rundir import ModelDir
from noisystudent.run.stages import Status, state
from noisystudent.self_training import pool
from noisystudent.self_training.context import Context
from noisystudent.self_training.folds import weight_decays
from noisystudent.self_training.training import Training


@dataclass(frozen=True, slots=True)
class Length:
    """How long a training is.

    Attributes:
        model: name of the network.
        resolution: input side in pixels.
        steps: optimiser steps. None: the selection gives them (`train.pool_epochs`), and is not made yet.
        images: images of all batches together; None like `steps`.
    """

    model: str
    resolution: int
    steps: int | None
    images: int | None


Lengths = Mapping[str, Length]
"""Name of a stage that trains -> its length."""


def announce(context: Context) -> None:
    """Print every training to come, and write the schedule for `status`."""
    stages = context.graph.stages()
    lengths, done = group().lead(partial(_plan, context))
    coming = [stage.name for stage in stages if stage.name not in done]
    if not coming:
        return
    trainings = {name: lengths[name] for name in coming if name in lengths}
    known = [length for length in trainings.values() if length.steps is not None]
    steps, images = (sum(getattr(length, name) for length in known) for name in ("steps", "images"))
    more = "" if len(known) == len(trainings) else ", and those that the selection gives"
    context.progress.say(
        f"to come: {len(coming)} of {len(stages)} stages, {len(trainings)} of them trainings;"
        f" {steps:,} steps with {images:,} images in all{more}"
    )
    for name, length in trainings.items():
        size = "steps as the selection gives"
        if length.steps is not None:
            size = f"{length.steps:,} steps, {length.images:,} images"
        context.progress.say(f"  {name}: {size}, {length.model}, {length.resolution} pixels")


def update(context: Context) -> None:
    """Write the schedule again after a selection, if one of the trainings has its length from there."""
    if any(student.train.pool_epochs is not None for student in context.config.students):
        group().lead(partial(_plan, context))


def _plan(context: Context) -> tuple[Lengths, set[str]]:
    """Write the schedule; return the length of each training, and the names of the finished stages."""
    lengths, stages = dict(_lengths(context)), context.graph.stages()
    rows = [
        {
            "name": stage.name,
            "fingerprint": stage.fingerprint,
            "training": asdict(lengths[stage.name]) if stage.name in lengths else None,
        }
        for stage in stages
    ]
    write_json(context.run.schedule, {"stages": rows})
    return lengths, {stage.name for stage in stages if state(stage).status is Status.DONE}


def _lengths(context: Context) -> Iterator[tuple[str, Length]]:
    """Yield (name of the stage, length) of each training."""
    config, graph = context.config, context.graph
    folder = ModelDir(context.run.path)  # nothing is read or written there
    if graph.filter is not None and config.filter is not None:
        yield graph.filter.name, _length(context.training(config.filter, folder, "filter"))
    if graph.pretraining is not None and config.pretrain is not None:
        yield graph.pretraining.name, _length(context.on_pool_folders(config.pretrain, folder))
    for fold in graph.folds:
        # Each has the steps of the teacher; a head is trained once with each weight decay.
        assert graph.teacher is not None
        yield from _of_model(context, fold, context.trainings(graph.teacher)[0], len(weight_decays(context)))
    for teacher in graph.teachers:
        if teacher.role == "teacher":
            yield from _of_model(context, teacher, context.trainings(teacher)[0])
    for iteration in graph.iterations:
        known = all(map(_has_length, graph.iterations[: iteration.index]))
        for model in iteration.models:
            yield from _of_model(context, model, _first(context, iteration, model, known), 1, known)


def _first(context: Context, iteration: Iteration, model: Model, known: bool) -> Training:
    """Return the first training of a student or a control; without `known` its length is meaningless."""
    if not known:
        return context.trainings(model)[0]
    if model.role == "student":
        return pool.student_training(context, iteration, None)
    return pool.control(context, iteration, model, None)


def _has_length(iteration: Iteration) -> bool:
    """Return True if no selection is needed for the length of the student, or it is made."""
    needed = iteration.config.train.pool_epochs is not None
    return not needed or state(iteration.selection).status is Status.DONE


def _of_model(
    context: Context, model: Model, first: Training, times: int = 1, known: bool = True
) -> Iterator[tuple[str, Length]]:
    """Yield the length of a training, and of the fine-tuning after it."""
    last = context.last_training(first, model)
    yield model.training.name, _length(first, times, known)
    if model.finetuning is not None:
        yield model.finetuning.name, _length(last)


def _length(training: Training, times: int = 1, known: bool = True) -> Length:
    steps, images = (times * training.total_steps, times * training.images) if known else (None, None)
    return Length(training.learner.model.name, training.resolution, steps, images)
