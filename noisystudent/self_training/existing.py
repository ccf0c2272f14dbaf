"""A first teacher that the run does not train: a model, or probabilities that were made elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from noisystudent.config import FirstTeacherConfig
from noisystudent.config.weights import normalized
from noisystudent.data.imageset import ImageSet
from noisystudent.errors import InputError, RunError
from noisystudent.inference.existing import load_existing
from noisystudent.inference.predictor import Predictor
from noisystudent.metrics import classification, guards, scores
from noisystudent.metrics.scores import Predictions
from noisystudent.run.graph import Model
from noisystudent.run.record import read_record
from noisystudent.run.rundir import ModelDir, SetName
from noisystudent.run.stages import run_stage
from noisystudent.self_training.context import Context
from noisystudent.self_training.stored import match, open_stored

_LACKING = "lacking"  # key in the record of the stage


@dataclass(frozen=True, slots=True)
class Existing:
    """A first teacher that the run does not train; its stage is done.

    Attributes:
        config: its section of the configuration.
        folder: its predictions for val and test if it can predict them, and its stored probabilities.
    """

    config: FirstTeacherConfig
    folder: ModelDir

    def predictor(self, context: Context) -> tuple[Predictor, tuple[int, ...]]:
        """Load the model, and return its output (K,) for each class.

        Raises:
            InputError: see `load_existing`.
        """
        data = context.config.data
        model, order = load_existing(
            self.config, context.dataset.classes, data.resolution, str(context.device)
        )
        return replace(model, workers=data.workers).limited(context.config.evaluate.batch_size), order


def read_existing(context: Context) -> None:
    """Check every first teacher that is not trained, and store what it predicts for val and test.

    Of probabilities made elsewhere, those of the pool are stored in the order of the pool.

    Raises:
        InputError: a file cannot be used, lacks images of the pool, or has other classes; or no first teacher
            can predict val and test; or the weights are to be chosen on val, and a teacher cannot predict it.
        RunError: a teacher is at chance level on val, or the disk is full.
        Stopped: a signal was received. Another call resumes.
    """
    for model in context.graph.teachers:
        if model.role == "existing":
            _read(context, model)
    _require_judged(context)
    _require_weighted(context)


def existing(model: Model) -> Existing:
    """Return the teacher of a finished stage."""
    assert isinstance(model.config, FirstTeacherConfig)
    return Existing(model.config, ModelDir(model.training.path))


def known(teacher: Existing, name: str) -> Predictions | None:
    """Return what the teacher predicts for a set, "val" or "test"; None if it cannot."""
    path = teacher.folder.predictions(name)
    return scores.load_predictions(path) if path.is_file() else None


def labeled_sets(context: Context) -> dict[SetName, ImageSet]:
    """Return val, and test if there is one."""
    name, images = context.judged
    return {"val": context.dataset.val, name: images}


def _read(context: Context, model: Model) -> None:
    teacher = existing(model)

    def work() -> dict[str, object] | None:
        teacher.folder.path.mkdir(parents=True, exist_ok=True)
        context.progress.say(f"{model.training.name}: {teacher.config.existing}, which is not trained")
        return (_read_labels if teacher.config.labels_from else _predict)(context, teacher)

    run_stage(model.training, work, context.progress)
    # Outside the stage: the check must also stop a run that is started again.
    predicted = known(teacher, "val")
    if predicted is None:
        context.progress.say(
            f"note: {model.training.name}: it has no rows for {_lacking(model, 'val')}, so it is not measured"
        )
        return
    probs, labels = predicted
    top1 = classification.top_k(probs, labels, 1)
    context.progress.say(f"{model.training.name}: val top-1 {top1:.1%} of {len(labels):,} images")
    fault = guards.fault(labels, probs, is_teacher=True)
    if fault is not None:
        raise RunError(f"{model.training.name}: {fault}")


def _predict(context: Context, teacher: Existing) -> None:
    model, order = teacher.predictor(context)
    for name, images in labeled_sets(context).items():
        context.progress.check()
        try:
            prepared, _ = model.prepared(len(images), progress=context.progress)
            probs = prepared.probs(images)[:, list(order)]
        except RunError as error:
            raise RunError(f"teachers: model_from {teacher.config.existing}: {error}") from error
        scores.save_predictions(teacher.folder.predictions(name), probs, images.labels)


def _read_labels(context: Context, teacher: Existing) -> dict[str, object] | None:
    """Store the probabilities; returns, for the record, the sets that lack rows: see `_lacking`."""
    stored, pool = open_stored(teacher.config, context.dataset.classes), context.dataset.pool
    missing = match(stored, pool, teacher.folder.probs)
    if missing is not None:
        count, first = missing
        raise InputError(
            f"teachers: labels_from {teacher.config.labels_from} has no row for {count:,} of {len(pool):,}"
            f" pool images, such as {first}; it needs one with the {stored.key} of each"
        )
    if stored.key == "id":
        return None  # names are unique in a set alone, so another image could have them
    lacking: dict[str, object] = {}
    for name, images in labeled_sets(context).items():
        context.progress.check()
        file = teacher.folder.probs.with_name(f".{name}.npy")
        missing = match(stored, images, file)
        if missing is None:
            probs = np.load(file)
            scores.save_predictions(teacher.folder.predictions(name), probs, images.labels)
            file.unlink()
        else:
            count, first = missing
            lacking[name] = f"{count:,} of {len(images):,} {name} images, such as {first}"
    return {_LACKING: lacking} if lacking else None


def _lacking(model: Model, name: SetName) -> str:
    """The images of a set, in words, for which a teacher has no rows; its stage is done."""
    result = (read_record(model.training.record) or {}).get("result") or {}
    images: str = result.get(_LACKING, {}).get(name, f"the {name} images")  # rows with `id` have none of them
    return images


def _require_judged(context: Context) -> None:
    """Raise InputError unless a first teacher can predict val and test: the verdict compares with it."""
    if context.graph.teacher is not None:
        return
    for name in labeled_sets(context):
        if all(known(existing(model), name) is None for model in context.graph.teachers):
            raise InputError(
                f"teachers: no first teacher has probabilities for all {name} images; give rows with their"
                " content_hash, or add a teacher that is trained (with the weight 0 it labels nothing)"
            )


def _require_weighted(context: Context) -> None:
    """Raise InputError if the weights are to be chosen on val, and a teacher cannot predict it."""
    if normalized(context.config.teacher_weights, len(context.graph.teachers)) is not None:
        return
    for model in context.graph.teachers:
        if model.role == "existing" and known(teacher := existing(model), "val") is None:
            raise InputError(
                f"teacher_weights is val, but {teacher.config.existing} has no probabilities for"
                f" {_lacking(model, 'val')}; give rows with their content_hash, or numbers as teacher_weights"
            )
