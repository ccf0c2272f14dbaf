"""The share of right labels that a selection is expected to have, from the teacher's predictions on val."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from noisystudent.metrics import classification
from noisystudent.metrics.precision import Precision, curve, precision_above
from noisystudent.records import Selection
from noisystudent.run.graph import Iteration
from noisystudent.run.record import read_record
from noisystudent.selection import summary as selection_summary
from noisystudent.self_training.context import Context
from noisystudent.self_training.predict import label_val
from noisystudent.self_training.training import Training

_RESULT = "val_precision"  # key in the record of the selection, and in evaluation.json


def estimate(context: Context, iteration: Iteration, teachers: Sequence[Training]) -> dict[str, object]:
    """Compare the finished selection with val, and return the content of its record.

    A val image counts if it has at least the smallest confidence of the kept pool images of the class that is
    predicted for it, and at most `selection.max_confidence`. The labels of a filter, or of an earlier teacher
    (`selection.reassign`), decide without these limits; then this is close to the accuracy on val.

    Returns:
        {val_precision: {images, kept, right, curve}}: numbers of val images, see `precision.Precision` and
        `precision.curve`.
    """
    probs, labels = label_val(teachers, iteration.config.pseudo_label, context.dataset.val, context.progress)
    confidence, right = probs.max(axis=1), classification.correct(probs, labels)
    kept = selection_summary(Selection(iteration.selection.path, len(context.dataset.classes)))
    least = [np.inf if row["kept"] == 0 else row["min_confidence"] for row in kept["classes"]]
    threshold = np.array(least)[probs.argmax(axis=1)]
    threshold[confidence > iteration.config.selection.max_confidence] = np.inf
    estimated = precision_above(confidence, right, threshold)
    counts = {"images": estimated.images, "kept": estimated.kept, "right": estimated.right}
    return {_RESULT: {**counts, "curve": curve(confidence, right)}}


def precision(context: Context, iteration: Iteration) -> Precision | None:
    """Return the estimate in the record of a selection; None if the record has none."""
    content = _read(iteration)
    if content is None:
        return None
    level = context.config.evaluate.level
    return Precision(content["images"], content["kept"], content["right"], level)


def summary(context: Context, iteration: Iteration) -> dict[str, object]:
    """Return the estimate for evaluation.json: that of the record, with share, low, high and sentence."""
    content, estimated = _read(iteration), precision(context, iteration)
    if content is None or estimated is None:
        return {}
    low, high = estimated.interval
    shown = {"share": estimated.share, "low": low, "high": high, "sentence": estimated.sentence()}
    return {_RESULT: {**content, **shown}}


def _read(iteration: Iteration) -> dict[str, Any] | None:
    record = read_record(iteration.selection.record) or {}
    content: dict[str, Any] | None = (record.get("result") or {}).get(_RESULT)
    return content
