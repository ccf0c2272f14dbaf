"""Every model of a run on corrupted, perturbed and attacked images of its test: columns beside accuracy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.data.imageset import ImageSet
from noisystudent.data.loader import clean_batches
from noisystudent.evaluate import columns
from noisystudent.evaluate.answers import Answers, load_answers, save_answers, stratified
from noisystudent.evaluate.corruptions import Frost, find_frost
from noisystudent.evaluate.corruptions import column as constants_column
from noisystudent.evaluate.pictures import Pictures, generated, remembered
from noisystudent.evaluate.stress import Plan, Subject, asked, at_once, stress
from noisystudent.self_training import learner
from noisystudent.self_training.context import Context
from noisystudent.self_training.learner import Lesson
from noisystudent.stages import fingerprint

Key = tuple[int, str]
"""(iteration, role) of a model."""

Columns = dict[Key, dict[str, Any]]

_BATCH = 128


def measure(context: Context, lessons: dict[Key, Lesson]) -> Columns:
    """The robustness of each model on test, or val where there is none.

    What each model did is kept as `robustness.npz` beside its weights after every part of a test.

    Returns:
        Of each model what `columns.column` has, and: `images`, how many; `constants`, the side whose
        published constants were used; `frost`, whether it was done; `to_teacher`, `columns.ratios` to the
        first teacher; `minus`, {rival: {test: `columns.difference`}} with its control and the first teacher.
    """
    config = context.config.evaluate
    if not config.tests:
        return {}
    images = context.dataset.val if context.dataset.test is None else context.dataset.test
    rows = stratified(images.labels, config.sample or len(images), context.config.seed)
    plan = Plan(
        tests=("clean", *config.tests),
        severities=config.severities,
        seed=context.config.seed,
    )
    frost = find_frost(None if config.frost is None else Path(config.frost))
    found: Columns = {}
    said: dict[Key, Answers] = {}
    for side in sorted({lesson.resolution for lesson in lessons.values()}):
        group = {key: lesson for key, lesson in lessons.items() if lesson.resolution == side}
        about = {"constants": constants_column(side), "frost": frost is not None, "images": len(rows)}
        said |= (answers := _answers(context, group, images.subset(rows), plan, frost))
        found |= {key: columns.column(own, config.level) | about for key, own in answers.items()}
    for key, column in found.items():
        rivals = {"control": (key[0], "control"), "teacher": (0, "teacher")}
        column["to_teacher"] = columns.ratios(column, found[rivals["teacher"]])
        column["minus"] = {
            name: columns.differences(said[key], said[rival], config.level)
            for name, rival in rivals.items()
            if rival in said and rival != key
        }
    return found


def _answers(
    context: Context, group: dict[Key, Lesson], images: ImageSet, plan: Plan, frost: Frost | None
) -> dict[Key, Answers]:
    """Of models of one resolution; read back as far as they were made."""
    side = next(iter(group.values())).resolution
    digest = fingerprint(images.content_hash.tobytes().hex(), side, plan.seed, frost and frost.digest())
    paths = {key: lesson.folder / "robustness.npz" for key, lesson in group.items()}
    of_these = json.dumps([digest])
    found = {_name(key): load_answers(path, of_these) for key, path in paths.items()}

    def save() -> None:
        for key, path in paths.items():
            save_answers(path, found[_name(key)], of_these)
        context.stop.check()

    stress(
        {_name(key): _subject(lesson) for key, lesson in group.items()},
        _pictures(images, next(iter(group.values())), plan.seed, frost),
        plan,
        found,
        save,
        lambda done, total: context.voice.progress("robustness", done, total),
    )
    return {key: asked(found[_name(key)], plan) for key in group}


def _name(key: Key) -> str:
    return f"{key[1]}-{key[0]}"


def _subject(lesson: Lesson) -> Subject:
    model = learner.load(lesson)
    return Subject(learner.predictor(model, lesson), model)


def _pictures(images: ImageSet, lesson: Lesson, seed: int, frost: Frost | None) -> Pictures:
    """Views of `images` as the model of a lesson sees them.

    From 224 pixels on ImageNet-P is made of a wider view; stored squares have nothing around them to show.
    """
    side = lesson.resolution
    wide = side if images.resident or side < 224 else round(side * 256 / 224)
    rows = np.arange(len(images))
    batch = at_once(side, _BATCH)
    clean = remembered(partial(learner.clean_views(lesson, images, batch), rows), len(rows) * 3 * side**2)
    wholes = partial(_wide, images, rows, wide, lesson) if wide > side else clean
    return generated(clean, wholes, images.labels, seed=seed, frost=frost)


def _wide(images: ImageSet, rows: NDArray[np.int64], side: int, lesson: Lesson) -> Iterator[Tensor]:
    """The middle squares, whole."""
    return clean_batches(
        images,
        rows,
        resolution=side,
        batch_size=at_once(side, _BATCH),
        device=lesson.device,
        workers=lesson.workers,
        boxes=images.squares(rows),
    )
