"""The model of a run that other commands use: the last student, unless val shows that another is better."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from noisystudent import recipes
from noisystudent.errors import RunError
from noisystudent.metrics import classification, scores
from noisystudent.metrics.best import best
from noisystudent.run.record import read_record
from noisystudent.run.rundir import ROLES, ModelDir, RunDir, model_name


def chosen(run: RunDir) -> tuple[ModelDir, str] | None:
    """Folder of the weights to use, fine-tuned if they were, and why, in a few words; "" without a choice.

    Models are compared by their saved predictions on val, see `best`; in an unfinished run those that are
    finished.

    Returns:
        None if no teacher or student is finished.

    Raises:
        InputError: a field of config.yaml is wrong.
        RunError: config.yaml or a record is damaged.
    """
    models = _finished(run)
    students = [name for name in models if name.startswith("student-")]
    default = students[-1] if students else "teacher"
    if default not in models:
        return None
    right = {name: hits for name, model in models.items() if (hits := _hits(model)) is not None}
    if default not in right:
        return models[default], ""
    same = {name: hits for name, hits in right.items() if len(hits) == len(right[default])}
    raw, fields = run.read_config(), ("seed", "evaluate")
    config = recipes.resolve({key: raw[key] for key in fields if key in raw}, origin=str(run.config))
    name, reason = best(same, default, config.evaluate, config.seed)
    return models[name], reason


def is_done(model: ModelDir) -> bool:
    """Return True if the training of the model is finished: a stopped one may have left weights."""
    record = read_record(model.record)
    return record is not None and record["status"] == "done"


def _finished(run: RunDir) -> dict[str, ModelDir]:
    """Return the finished models in the order of training: name -> fine-tuning if it is done, or training."""
    models: dict[str, ModelDir] = {}
    for index in range(1 + (run.student_count() or 0)):
        for role in ROLES[:1] if index == 0 else ROLES[1:]:
            trained = run.iteration(index).model(role)
            done = [model for model in (trained.finetune, trained) if is_done(model)]
            models |= {model_name(index, role): model for model in done[:1]}
    return models


def _hits(model: ModelDir) -> NDArray[np.bool_] | None:
    """(N,) bool, True where the model is right on val. None without intact predictions; a run mends them."""
    try:
        return classification.correct(*scores.load_predictions(model.predictions("val")))
    except RunError:
        return None
