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
from noisystudent.run.rundir import ModelDir, SetName
from noisystudent.run.stages import run_stage
from noisystudent.self_training.context import Context
from noisystudent.self_training.stored import match, open_stored


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

    def work() -> None:
        teacher.folder.path.mkdir(parents=True, exist_ok=True)
        context.progress.say(f"{model.training.name}: {teacher.config.existing}, which is not trained")
        (_read_labels if teacher.config.labels_from else _predict)(context, teacher)

    run_stage(model.training, work, context.progress)
    # Outside the stage: the check must also stop a run that is started again.
    predicted = known(teacher, "val")
    if predicted is None:
        context.progress.say(
            f"note: {model.training.name}: it has no rows for the val images, so it is not measured"
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
        prepared, _ = model.prepared(len(images), progress=context.progress)
        probs = prepared.probs(images)[:, list(order)]
        scores.save_predictions(teacher.folder.predictions(name), probs, images.labels)


def _read_labels(context: Context, teacher: Existing) -> None:
    stored, pool = open_stored(teacher.config, context.dataset.classes), context.dataset.pool
    missing = match(stored, pool, teacher.folder.probs)
    if missing is not None:
        count, first = missing
        raise InputError(
            f"teachers: labels_from {teacher.config.labels_from} has no row for {count:,} of {len(pool):,}"
            f" pool images, such as {first}; it needs one with the {stored.key} of each"
        )
    if stored.key == "id":
        return  # names are unique in a set alone, so another image could have them
    for name, images in labeled_sets(context).items():
        context.progress.check()
        file = teacher.folder.probs.with_name(f".{name}.npy")
        if match(stored, images, file) is None:
            probs = np.load(file)
            scores.save_predictions(teacher.folder.predictions(name), probs, images.labels)
            file.unlink()


def _require_judged(context: Context) -> None:
    """Raise InputError unless a first teacher can predict val and test: the verdict compares with it."""
    if context.graph.teacher is not None:
        return
    for name in labeled_sets(context):
        if all(known(existing(model), name) is None for model in context.graph.teachers):
            raise InputError(
                f"teachers: no first teacher has probabilities for the {name} images; give rows with their"
                " content_hash, or add a teacher that is trained (with the weight 0 it labels nothing)"
            )


def _require_weighted(context: Context) -> None:
    """Raise InputError if the weights are to be chosen on val, and a teacher cannot predict it."""
    if normalized(context.config.teacher_weights, len(context.graph.teachers)) is not None:
        return
    for teacher in (existing(model) for model in context.graph.teachers if model.role == "existing"):
        if known(teacher, "val") is None:
            raise InputError(
                f"teacher_weights is val, but {teacher.config.existing} has no probabilities for the val"
                " images; give rows with their content_hash, or numbers as teacher_weights"
            )
