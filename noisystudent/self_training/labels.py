"""The labelling of the pool as a stage of a run, and labels made in the step of a student."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
from torch import Tensor

from noisystudent.config import PseudoLabelConfig
from noisystudent.console import Progress
from noisystudent.data.loader import OnlineTeacher
from noisystudent.distributed import group
from noisystudent.inference.joint import joint_batches
from noisystudent.inference.predictor import Rows
from noisystudent.pseudo_label import label_images
from noisystudent.pseudo_label.encode import soft_targets
from noisystudent.records import Predict, Vote
from noisystudent.run.aside import put_aside
from noisystudent.run.files import atomic
from noisystudent.run.graph import Graph
from noisystudent.run.rundir import LabelsDir
from noisystudent.run.stages import Stage, Status, run_stage, state
from noisystudent.runtime import release_memory
from noisystudent.self_training.context import Context
from noisystudent.self_training.first_teachers import Teachers, joint_predictor, labeler, val_energies
from noisystudent.self_training.predict import with_transforms
from noisystudent.self_training.training import predictor, predictor_of_sets


def put_doubtful_aside(graph: Graph, progress: Progress) -> None:
    """Move an interrupted labelling away if what it is made from is damaged, so that all of it is made again.

    A worker may have read the damaged file. A file that is made again may differ in its last digits.
    """
    for stage in graph.labelings():
        if state(stage).status is Status.PARTIAL and (damage := graph.damage_before(stage)):
            progress.say(
                f"{stage.name}: {damage}, so the labels are made again; kept in {put_aside(stage.path)}"
            )


def label_pool(context: Context, stage: Stage, teachers: Teachers, config: PseudoLabelConfig) -> None:
    """Label every pool image, unless this was done: clean views at the teachers' resolutions, no noise.

    Args:
        context: the run.
        stage: stage of the labelling; its folder receives the pseudo-labels.
        teachers: finished teachers. Several ones are averaged in one pass over the pool.
        config: settings of the labelling. `config.noise` adds the noise of each teacher's training.

    Raises:
        RunError: the logits are not finite, or the disk is full.
        Stopped: a signal was received. Another call resumes.
    """

    def work() -> dict[str, object] | None:
        result = write_labels(context, stage, teachers, config)
        _write_energies(context, stage, teachers, config)
        return result

    run_stage(stage, work, context.progress, shared=True)
    release_memory()


def write_labels(
    context: Context,
    stage: Stage,
    teachers: Teachers,
    config: PseudoLabelConfig,
    join: Callable[[], object] | None = None,
) -> dict[str, object] | None:
    """Label the pool as the work of the stage; returns what its record has. `join`: see `label_images`."""
    write = partial(_write_labels, context, stage, join=join)
    if teachers.single is not None:
        model, views = labeler(predictor_of_sets(teachers.single), teachers.single, config)
        model = model.limited(config.batch_size)
        limited = replace(config, batch_size=model.size)
        write(limited, partial(model.prepared, progress=context.progress), views)
        return None
    joint, streams = joint_predictor(context, teachers, config)
    write(
        replace(config, batch_size=joint.batch_size),
        partial(joint.prepared, progress=context.progress),
        partial(joint_batches, streams),
        voters=len(joint.members),
    )
    return {"weights": list(teachers.weights)}


def _write_labels(
    context: Context,
    stage: Stage,
    config: PseudoLabelConfig,
    prepare: Callable[[int, int], tuple[Callable[[Any], Tensor | Vote], int]],
    images: Callable[[Iterator[Rows]], Iterator[Any]],
    *,
    join: Callable[[], object] | None,
    voters: int = 1,
) -> None:
    pool = context.dataset.pool
    label_images(
        prepare,
        images,
        pool.ids,
        pool.content_hash,
        num_classes=len(context.dataset.classes),
        config=config,
        out=stage.path,
        task=stage.name,
        progress=context.progress,
        voters=voters,
        join=join,
    )


def _write_energies(context: Context, stage: Stage, teachers: Teachers, config: PseudoLabelConfig) -> None:
    """Store the energies of val beside the labels: those of the pool are compared with them.

    There are none with noise, which lowers those of the pool.
    """
    energies = None if config.noise else val_energies(context, teachers, config)

    def write() -> None:
        if energies is not None:
            with atomic(LabelsDir(stage.path).energies) as partial_file, partial_file.open("wb") as file:
                np.save(file, energies)

    group().lead(write)


def online_teacher(context: Context, teachers: Teachers, config: PseudoLabelConfig) -> OnlineTeacher:
    """Return a teacher that labels the pool images of a batch during the training of the student.

    Probabilities are rounded to float16 and normalised again, as stored ones are. So both give equal labels
    up to 256 classes. Above, stored labels keep the `pseudo_label.top_k` largest probabilities and divide the
    rest evenly, and these labels keep all.
    """
    if teachers.single is not None:
        alone = with_transforms(predictor(teachers.single), config)
        resolution, logits = alone.resolution, cast(Predict, alone)
    else:  # they differ only in their seed, so they are given the same views
        joint, _ = joint_predictor(context, teachers, config, predictor)
        resolution, logits = joint.resolution, joint.logits

    def probs(images: Tensor) -> Tensor:  # (B, 3, S, S) uint8 -> (B, K) float32
        rounded = soft_targets(logits(images), config.temperature).half().float()
        return rounded / rounded.sum(dim=1, keepdim=True)

    return OnlineTeacher(resolution, probs)
