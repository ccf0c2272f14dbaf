"""Stages of the pool after its labelling: selection, and the training of the student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from noisystudent.config.run import control_from_teacher
from noisystudent.data.loader import SelectedPool
from noisystudent.data.sampler import shown
from noisystudent.distributed import group
from noisystudent.errors import RunError
from noisystudent.metrics import guards
from noisystudent.metrics.reasons import selection_warnings
from noisystudent.pseudo_label import read_targets
from noisystudent.pseudo_label import summary as label_summary
from noisystudent.records import PseudoLabels, Selection
from noisystudent.run.files import atomic
from noisystudent.run.graph import Iteration, Model
from noisystudent.run.rundir import CONTROLS, ModelDir
from noisystudent.run.stages import run_stage
from noisystudent.selection import (
    junk_note,
    lost_classes,
    none_kept,
    reassign,
    select,
    selected_rows,
    without_effect,
)
from noisystudent.selection import summary as selection_summary
from noisystudent.self_training import expected, gallery
from noisystudent.self_training.compute import lengthened
from noisystudent.self_training.context import Context
from noisystudent.self_training.first_teachers import Teachers, teacher_rows
from noisystudent.self_training.labels import online_teacher
from noisystudent.self_training.training import Training
from noisystudent.train.ema_teacher import EmaTeacher


def select_images(
    context: Context, iteration: Iteration, before: Iteration | None, teachers: Teachers
) -> None:
    """Select pool images with confident pseudo-labels and balance the classes (§3.1), unless this was done.

    The record of the stage has the expected precision, see `expected.estimate`.

    Args:
        context: the run.
        iteration: its labels are read, and its selection is written.
        before: the iteration before, whose images are kept if `selection.reassign` is set; None if first.
        teachers: finished teachers that labelled the pool.

    Raises:
        RunError: all confidences are equal, or the disk is full.
        Stopped: a signal was received. Another call resumes.
    """

    def work() -> dict[str, object]:
        _select(context, iteration, before, several=len(teachers.members) > 1)
        return expected.estimate(context, iteration, teachers)

    run_stage(iteration.selection, work, context.progress)
    # Outside the stage: a run that is started again must print the warnings and stop, too.
    _check_selection(context, iteration, teachers)


def student(context: Context, iteration: Iteration, teachers: Teachers) -> Training:
    """Return the student's training on the labelled images and the selected pool images."""
    training = student_training(context, iteration, teachers.initial)
    return replace(training, read_pool=_pool_reader(context, iteration, teachers, training))


def control(
    context: Context,
    iteration: Iteration,
    model: Model,
    teacher: Training | None,
    *,
    selected: int | None = None,
) -> Training:
    """Return the training of a control: as the student's, but on labelled images alone.

    Network, noise and images per step are the same. The control of the same steps differs from the student
    only in the pool. That of the same compute has as many image passes as the whole run. The linear probe is
    what a first teacher with the same settings would be.

    Args:
        context: the run.
        iteration: the last iteration.
        model: stages of the control.
        teacher: the first teacher that the run has trained, on labelled images alone; None: there is none.
        selected: see `student_training`.
    """
    if model.role == CONTROLS["linear_probe"]:
        return context.training(model.config, ModelDir(model.training.path), "iteration-0")
    start = teacher if control_from_teacher(context.config) else None
    training = _student_or_control(context, iteration, start, ModelDir(model.training.path), selected)
    if model.role != CONTROLS["same_compute"]:
        return training
    return lengthened(
        context,
        training,
        [student_training(context, other, teacher, selected) for other in context.graph.iterations],
    )


def summary(context: Context, iteration: Iteration) -> dict[str, object]:
    """Return statistics of the pseudo-labels and of the selection, for evaluation.json."""
    truth = context.dataset.pool.truth if context.config.data.pool_truth else None
    selection = _selection(context, iteration)
    rows, _ = selected_rows(selection)
    kept = selection_summary(selection)
    labels = label_summary(_labels(context, iteration.labels.path), truth=truth, kept=rows)
    if iteration.index == 1 and len(context.graph.teachers) > 1:
        labels["teachers"] = teacher_rows(context)
    named = [{"class": context.dataset.classes[row["label"]], **row} for row in kept["classes"]]
    return {
        "pseudo_labels": labels,
        "selection": {**kept, "classes": named, **expected.summary(context, iteration)},
    }


def thumbnails(context: Context, iteration: Iteration) -> dict[str, object]:
    """Return the pool images in gallery.json, see `gallery.thumbnails`."""
    labels, selection = _labels(context, iteration.labels.path), _selection(context, iteration)
    with_truth = context.config.data.pool_truth
    return {"classes": gallery.thumbnails(context.dataset, labels, selection, with_truth)}


def student_training(
    context: Context, iteration: Iteration, teacher: Training | None, selected: int | None = None
) -> Training:
    """Return the student's training, without pool images.

    Args:
        context: the run.
        iteration: its student.
        teacher: training whose weights a student with `init: teacher` starts from. None: there is none.
        selected: number of images in an epoch of the pool. None: it is read from the selection if the length
            of the training depends on it.
    """
    folder = ModelDir(iteration.student.training.path)
    training = _student_or_control(context, iteration, teacher, folder, selected)
    config = iteration.config.pseudo_label
    if config.teacher != "ema":
        return training
    ema = EmaTeacher(
        temperature=config.temperature,
        threshold=config.ema_threshold,
        adaptive=config.ema_adaptive,
        fairness=config.ema_fairness,
        first_step=round(config.ema_start * training.total_steps),
    )
    return replace(training, ema=ema)


def _student_or_control(
    context: Context,
    iteration: Iteration,
    teacher: Training | None,
    folder: ModelDir,
    selected: int | None,
) -> Training:
    """Return the training that a student and its control have in common, without pool images."""
    config, student = iteration.config.pseudo_label, iteration.config
    pool_images = selected or 0
    if student.train.pool_epochs is not None and selected is None:
        _, repeats = selected_rows(_selection(context, iteration))
        pool_images = int(repeats.sum(dtype=np.int64))
        if pool_images == 0:
            raise RunError(
                f"selection-{iteration.index} keeps no pool image, so train.pool_epochs gives no step;"
                " change the fields of selection, or give train.steps"
            )
    return replace(
        context.training(student, folder, f"iteration-{iteration.index}"),
        pool_images=pool_images,
        joint=student.joint,
        hard=config.hard,
        # Without `match_temperature` only the teacher's softmax has a temperature, as in the published code.
        temperature=config.temperature if config.match_temperature else 1.0,
        initial=teacher.folder if teacher is not None and student.init == "teacher" else None,
    )


def _pool_reader(
    context: Context, iteration: Iteration, teachers: Teachers, training: Training
) -> Callable[[], SelectedPool | None]:
    """Return a function that reads the selection; it is called when the training starts.

    The function copies the pseudo-labels of the selected images into the folder of `training`. It returns
    None if no image is selected.
    """
    config, window = iteration.config.pseudo_label, iteration.config.pool_window

    def read() -> SelectedPool | None:
        rows, repeats = selected_rows(_selection(context, iteration), window)
        if len(rows) == 0:
            return None
        repeats = shown(repeats, training.images)
        if config.on_the_fly:
            return SelectedPool(rows, repeats, online_teacher(context, teachers, config), window)
        labels = _labels(context, iteration.labels.path)
        # A memory-mapped copy, in the order of `rows`: the Parquet parts have no fast access by row.
        out = training.folder.targets
        targets = group().lead(partial(read_targets, labels, rows, hard=config.hard, out=out))
        return SelectedPool(rows, repeats, targets, window)

    return read


def _select(context: Context, iteration: Iteration, before: Iteration | None, *, several: bool) -> None:
    labels, out = _labels(context, iteration.labels.path), iteration.selection.path
    config, seed = iteration.config.selection, context.config.seed
    if not several:  # one teacher agrees with itself
        config = replace(config, agreement=0.0)
    labeled_by = context.config.students[0] if context.graph.filter_labels else iteration.config
    if labeled_by.pseudo_label.noise and config.junk == "report":
        config = replace(config, junk="off")  # labelled images have energies without noise
    if context.graph.filter_labels is not None:
        filter_labels = _labels(context, context.graph.filter_labels.path)
        # The filter decides which images are kept and how often; the teacher gives their labels.
        with atomic(context.run.iteration(iteration.index).filter_selection) as filtered:
            reassign(select(filter_labels, config, seed=seed, out=filtered), labels, out)
    elif config.reassign and before is not None:
        reassign(_selection(context, before), labels, out)
    else:
        energies = expected.labeled_energies(context, iteration)
        select(labels, config, seed=seed, out=out, energies=energies)


def _check_selection(context: Context, iteration: Iteration, teachers: Teachers) -> None:
    """Print how many images were kept, and a warning if classes or all images were lost.

    Raises:
        RunError: all pseudo-labels have the same confidence, below 1, so the selection is arbitrary.
    """
    name, counts = f"selection-{iteration.index}", selection_summary(_selection(context, iteration))
    images, kept, confidences = counts["images"], counts["kept"], counts["confidences"]
    # A teacher without errors on val may be certain of every image: then there is nothing to rank.
    if images > 1 and confidences[1] < 1 and guards.equal_confidences(*confidences):
        raise RunError(
            f"{name}: all {images:,} pool images have the confidence {confidences[0]:.6f}, so none can be"
            " preferred; train the teacher with a lower train.lr"
        )
    if kept:
        precision = expected.precision(context, iteration)
        lines = [f"{name}: {kept:,} of {images:,} pool images kept ({kept / images:.1%})"]
        lines += [] if precision is None else [f"{name}: {precision.sentence()}"]
        warnings = lost_classes(counts, context.dataset.classes)
        # The student's moving average labels in the step, with a threshold there: stored labels may be wrong.
        stored = iteration.config.pseudo_label.teacher != "ema"
        warnings += selection_warnings(kept, images, precision if stored else None)
        lines += [f"warning: {name}: {line}" for line in warnings]
    else:
        why = none_kept(counts)
        lines = [f"warning: {name}: {why}; student {iteration.index} learns from the given labels alone"]
    useless = without_effect(iteration.config.selection, len(context.dataset.classes))
    notes = [useless, junk_note(counts, iteration.config.selection), _alone(iteration, teachers)]
    lines += [f"note: {name}: {note}" for note in notes if note]
    for line in lines:
        context.progress.say(line)


def _alone(iteration: Iteration, teachers: Teachers) -> str | None:
    """A sentence if one first teacher is left to agree with itself; otherwise None."""
    first, *others = teachers.members
    if others or iteration.index > 1 or not iteration.config.selection.agreement:
        return None
    return (
        f"teacher_weights gives {first.folder.path.name} all the weight, so it labels the pool alone, and"
        " selection.agreement leaves out no image"
    )


def _labels(context: Context, path: Path) -> PseudoLabels:
    return PseudoLabels(path, len(context.dataset.classes))


def _selection(context: Context, iteration: Iteration) -> Selection:
    return Selection(iteration.selection.path, len(context.dataset.classes))
