"""The unlabelled pool: labelled by the teacher, selected from, and handed to the student."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from noisystudent import rundir
from noisystudent.config import PseudoLabelConfig
from noisystudent.data.loader import Chosen, Speaker
from noisystudent.graph import Iteration
from noisystudent.models.registry import Classifier
from noisystudent.pseudo_label import averaged, label_images, labeler, read_targets
from noisystudent.pseudo_label import summary as label_summary
from noisystudent.records import PseudoLabels, Selection
from noisystudent.selection import chosen, reassign
from noisystudent.selection import select as select_images
from noisystudent.selection import summary as selection_summary
from noisystudent.self_training import gallery, learner
from noisystudent.self_training.context import Context
from noisystudent.self_training.learner import Lesson
from noisystudent.stages import Stage, run_stage

TARGETS = "targets.npy"  # in a student's folder while it learns


def label(context: Context, stage: Stage, teachers: Sequence[Lesson], config: PseudoLabelConfig) -> None:
    """Let the noise-free teacher label every image of the pool, at its own resolution, from clean views.

    Several teachers, alike but for their seed, answer as one.
    """
    pool = context.dataset.pool

    def work() -> None:
        models = [learner.load(teacher) for teacher in teachers]
        predicts = [
            _asked(context, model, teacher, config.batch_size)
            for model, teacher in zip(models, teachers, strict=True)
        ]
        views = (
            learner.noised_views(models, teachers[0], pool)
            if config.noise
            else learner.pool_views(teachers[0], pool)
        )
        label_images(
            averaged(predicts, flip=config.flip, scales=config.scales),
            views,
            pool.ids,
            pool.content_hash,
            num_classes=len(context.dataset.classes),
            config=config,
            out=stage.path,
            stop=context.stop,
            progress=lambda done, total: context.voice.progress(stage.name, done, total),
        )

    run_stage(stage, work, context.voice.say)


def _asked(context: Context, model: Classifier, teacher: Lesson, batch_size: int) -> learner.Predict:
    answering = partial(learner.predictor, lesson=teacher)
    if teacher.learner.train.execution == "eager":
        return answering(model)
    images, notify = len(context.dataset.pool), context.voice.say
    return labeler(model, answering, images=images, batch_size=batch_size, notify=notify)


def _speaker(teachers: Sequence[Lesson], config: PseudoLabelConfig) -> Speaker:
    """Labels made in the student's step: rounded as stored ones are, so that the two are alike."""
    predicts = [learner.predictor(learner.load(teacher), teacher) for teacher in teachers]
    predict = averaged(predicts, flip=config.flip, scales=config.scales)

    def answer(images: Tensor) -> Tensor:
        probs = torch.softmax(predict(images) / config.temperature, dim=1).half().float()
        return probs / probs.sum(dim=1, keepdim=True)

    return Speaker(teachers[0].resolution, answer)


def select(context: Context, turn: Iteration, before: Iteration | None) -> None:
    """Keep what the teacher, or the filter in its place, is sure of, balanced over the classes."""

    def work() -> dict[str, int]:
        _select(context, turn, before)
        found = selection_summary(_selection(context, turn))
        return {name: found[name] for name in ("images", "kept", "total")}

    _announce(context, turn, run_stage(turn.selection, work, context.voice.say) or {})


def student(context: Context, turn: Iteration, teacher: Lesson) -> Lesson:
    """The student's lesson, its pool images still to come: see `study`."""
    said = turn.config.pseudo_label
    return dataclasses.replace(
        context.lesson(turn.config, turn.student.training.path, f"iteration-{turn.index}"),
        joint=turn.config.joint,
        hard=said.hard,
        temperature=said.temperature if said.match_temperature else 1.0,
        initial=teacher.folder / learner.WEIGHTS if turn.config.init == "teacher" else None,
    )


def study(context: Context, turn: Iteration, teachers: Sequence[Lesson], lesson: Lesson) -> Lesson:
    """The lesson with the selected pool images and the teachers' word on them, copied to its folder."""
    rows, repeats = chosen(_selection(context, turn))
    if len(rows) == 0:
        return lesson
    if turn.config.pseudo_label.on_the_fly:
        speaker = _speaker(teachers, turn.config.pseudo_label)
        return dataclasses.replace(lesson, chosen=Chosen(rows, repeats, speaker))
    said = _labels(context, turn.labels.path)
    targets = read_targets(said, rows, hard=lesson.hard, out=lesson.folder / TARGETS)
    return dataclasses.replace(lesson, chosen=Chosen(rows, repeats, targets))


def control(context: Context, turn: Iteration, teacher: Lesson) -> Lesson:
    """The student's twin: same network, steps, noise, images a step; but every image has a given label."""
    folder = turn.student.training.path.with_name("control")
    return dataclasses.replace(student(context, turn, teacher), folder=folder)


def _select(context: Context, turn: Iteration, before: Iteration | None) -> None:
    labels, out = _labels(context, turn.labels.path), turn.selection.path
    config = turn.config.selection
    filter_labels = context.graph.filter_labels
    if filter_labels is not None:
        with rundir.atomic(out.with_name("filter-selection.parquet")) as first:
            said = _labels(context, filter_labels.path)
            kept = select_images(said, config, seed=context.config.seed, out=first)
            reassign(kept, labels, out)
    elif config.reassign and before is not None:
        reassign(_selection(context, before), labels, out)
    else:
        select_images(labels, config, seed=context.config.seed, out=out)


def summary(context: Context, turn: Iteration) -> dict[str, object]:
    """What the teacher said and what was kept of it, as `evaluation.json` tells it."""
    truth = context.dataset.pool.truth if context.config.data.pool_truth else None
    selection = _selection(context, turn)
    rows, _ = chosen(selection)
    kept = selection_summary(selection)
    named = [{"class": context.dataset.classes[row["label"]], **row} for row in kept["classes"]]
    return {
        "pseudo_labels": label_summary(_labels(context, turn.labels.path), truth=truth, kept=rows),
        "selection": {**kept, "classes": named},
    }


def pictures(context: Context, turn: Iteration) -> dict[str, object]:
    """The gallery of the pool, as `gallery.json` tells it."""
    shown = gallery.pictures(context.dataset, _selection(context, turn), context.config.data.pool_truth)
    return {"classes": shown}


def _announce(context: Context, turn: Iteration, found: Mapping[str, int]) -> None:
    if found["kept"]:
        share = found["kept"] / found["images"]
        line = (
            f"selection-{turn.index}: {found['kept']:,} of {found['images']:,} pool images kept ({share:.1%})"
        )
    else:
        why = "no pool image is above the threshold" if found["images"] else "the pool is empty"
        line = f"warning: {why}; student {turn.index} learns from the given labels alone"
    context.voice.say(line)


def _labels(context: Context, path: Path) -> PseudoLabels:
    return PseudoLabels(path, len(context.dataset.classes))


def _selection(context: Context, turn: Iteration) -> Selection:
    return Selection(turn.selection.path, len(context.dataset.classes))
