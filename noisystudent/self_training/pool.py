"""The unlabelled pool: labelled by the teacher, selected from, and handed to the student."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from noisystudent import rundir
from noisystudent.config import PseudoLabelConfig
from noisystudent.data.loader import Chosen
from noisystudent.pseudo_label import label_images, read_targets
from noisystudent.pseudo_label import summary as label_summary
from noisystudent.records import PseudoLabels, Selection
from noisystudent.selection import chosen, reassign
from noisystudent.selection import select as select_images
from noisystudent.selection import summary as selection_summary
from noisystudent.self_training import gallery, learner
from noisystudent.self_training.context import Context
from noisystudent.self_training.graph import Iteration
from noisystudent.self_training.learner import Lesson
from noisystudent.stages import Stage, run_stage


def label(context: Context, stage: Stage, teacher: Lesson, config: PseudoLabelConfig) -> None:
    """Let the noise-free teacher label every image of the pool, at its own resolution, from clean views."""
    pool = context.dataset.pool

    def work() -> None:
        model = learner.load(teacher)
        views = (
            learner.noised_views(model, teacher, pool, config.batch_size)
            if config.noise
            else learner.clean_views(teacher, pool, config.batch_size)
        )
        label_images(
            learner.predictor(model, teacher),
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


def select(context: Context, turn: Iteration, before: Iteration | None) -> None:
    """Keep what the teacher, or the filter in its place, is sure of, balanced over the classes."""

    def work() -> None:
        _select(context, turn, before)
        found = _summary(context, turn)
        rundir.write_json(turn.selection.path.with_name("selection.json"), found)
        pictures = gallery.pictures(
            context.dataset, _selection(context, turn), context.config.data.pool_truth
        )
        rundir.write_json(turn.selection.path.with_name("gallery.json"), {"classes": pictures})

    run_stage(turn.selection, work, context.voice.say)
    _announce(context, turn)


def with_chosen(context: Context, turn: Iteration, teacher: Lesson) -> Lesson:
    """The student's lesson: given labels and the selected pool images with the teacher's word on them."""
    student = context.lesson(turn.config, turn.student.path, turn.index)
    initial = teacher.folder / "model.safetensors" if turn.config.init == "teacher" else None
    student = dataclasses.replace(student, hard=turn.config.pseudo_label.hard, initial=initial)
    rows, repeats = chosen(_selection(context, turn))
    if len(rows) == 0:
        return student
    targets = read_targets(
        _labels(context, turn.labels.path), rows, hard=student.hard, out=turn.labels.path.with_name("targets")
    )
    return dataclasses.replace(student, chosen=Chosen(rows, repeats, targets))


def control(context: Context, turn: Iteration, teacher: Lesson) -> Lesson:
    """The student's twin: same network, steps, noise, images a step; but every image has a given label."""
    lesson = context.lesson(turn.config, turn.student.path.with_name("control"), turn.index)
    initial = teacher.folder / "model.safetensors" if turn.config.init == "teacher" else None
    return dataclasses.replace(lesson, initial=initial)


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


def _summary(context: Context, turn: Iteration) -> dict[str, object]:
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


def _announce(context: Context, turn: Iteration) -> None:
    found = rundir.read_json(turn.selection.path.with_name("selection.json"))["selection"]
    total = len(context.dataset.pool)
    if total == 0:
        context.voice.say(
            f"warning: the pool is empty; student {turn.index} learns from the given labels alone"
        )
    elif found["kept"] == 0:
        context.voice.say(
            f"warning: no pool image is above the threshold; student {turn.index}"
            " learns from the given labels alone"
        )
    else:
        context.voice.say(
            f"selection-{turn.index}: {found['kept']:,} of {total:,} pool images kept"
            f" ({found['kept'] / total:.1%})"
        )


def _labels(context: Context, path: Path) -> PseudoLabels:
    return PseudoLabels(path, len(context.dataset.classes))


def _selection(context: Context, turn: Iteration) -> Selection:
    return Selection(turn.selection.path, len(context.dataset.classes))
