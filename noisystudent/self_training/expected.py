"""The share of right labels that a selection is expected to have, from predictions for labelled images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.metrics import classification
from noisystudent.metrics.classification import Floats, Ints
from noisystudent.metrics.power import LEAST_IMAGES
from noisystudent.metrics.precision import Precision, bins, by_threshold, curve, precision_above
from noisystudent.metrics.scores import load_energies
from noisystudent.records import PseudoLabels, Selection
from noisystudent.run.graph import Iteration
from noisystudent.run.record import read_record
from noisystudent.selection import read_energies, too_few_agree
from noisystudent.selection import summary as selection_summary
from noisystudent.self_training.context import Context
from noisystudent.self_training.first_teachers import Teachers, label_val
from noisystudent.self_training.folds import out_of_fold

_RESULT = "precision"  # key in the record of the selection, and in evaluation.json


def estimate(context: Context, iteration: Iteration, teachers: Teachers) -> dict[str, object]:
    """Compare the finished selection with labelled images, and return the content of its record.

    They are those of val. For the first teacher of a run with folds they are the given labels, predicted
    out of fold: they are more.

    An image counts if it has at least the smallest confidence of the kept pool images of the class that is
    predicted for it, at most `selection.max_confidence`, and the `selection.agreement`. The labels of a
    filter, or of an earlier teacher (`selection.reassign`), decide without these limits; then this is close
    to the accuracy on val.

    Returns:
        {precision: {source, images, kept, right, curve, bins}}: numbers of images, see `precision.Precision`,
        `precision.curve` and `_bins`. With settings that were chosen out of fold also {chosen: {threshold,
        strength, temperature, sentence}}. Without precision if a first teacher cannot predict val.
    """
    selection = iteration.config.selection
    known, agreement = (out_of_fold(context) if iteration.index == 1 else None), None
    source = "val" if known is None else "out of fold"
    if known is not None:
        probs, labels = known
    else:
        averaged = label_val(context, teachers, iteration.config.pseudo_label)
        if averaged is None:
            return _chosen(iteration)
        probs, labels, agreement = averaged
    label, confidence = probs.argmax(axis=1), probs.max(axis=1)
    right, num_classes = classification.correct(probs, labels), len(context.dataset.classes)
    kept = selection_summary(Selection(iteration.selection.path, num_classes))
    least = [np.inf if row["kept"] == 0 else row["min_confidence"] for row in kept["classes"]]
    threshold = np.array(least)[label]
    excluded = confidence > selection.max_confidence
    if agreement is not None and len(teachers.members) > 1:
        excluded |= too_few_agree(agreement, selection.agreement)
    threshold[excluded] = np.inf
    estimated = precision_above(confidence, right, threshold)
    counts = {"images": estimated.images, "kept": estimated.kept, "right": estimated.right}
    content = {"source": source, **counts, "curve": curve(confidence, right)}
    content["bins"] = _bins(label[~excluded], confidence[~excluded], right[~excluded], num_classes)
    return {_RESULT: content, **_chosen(iteration)}


def labeled_energies(context: Context, iteration: Iteration) -> NDArray[np.float32] | None:
    """Return the energies (N,) of labelled images, which give the limit of junk; None if there are none.

    They are those of val. If it is small, those out of fold are taken for the first student: they are more,
    but each is of a model of its own.
    """
    folds, few = context.graph.out_of_fold, len(context.dataset.val) < LEAST_IMAGES
    if few and folds is not None and iteration.index == 1:
        return load_energies(folds.path)
    return read_energies(PseudoLabels(iteration.labels.path, len(context.dataset.classes)))


def _bins(label: Ints, confidence: Floats, right: NDArray[np.bool_], num_classes: int) -> list[list[int]]:
    """Rows [class, column of `precision.bins`, images, right ones] of the columns that have images."""
    counts = bins(label, confidence, num_classes)
    hits = bins(label[right], confidence[right], num_classes)
    places = np.argwhere(counts)
    rows: list[list[int]] = np.column_stack([places, counts[counts > 0], hits[counts > 0]]).tolist()
    return rows


def _chosen(iteration: Iteration) -> dict[str, object]:
    if not iteration.chosen:
        return {}
    config = iteration.config
    values = {"threshold": config.selection.threshold, "strength": config.selection.strength}
    temperature = config.pseudo_label.temperature
    return {"chosen": {**values, "temperature": temperature, "sentence": iteration.chosen}}


def precision(context: Context, iteration: Iteration) -> Precision | None:
    """Return the estimate in the record of a selection; None if the record has none."""
    content = _read(iteration)
    return None if content is None else _precision(context, content)


def _precision(context: Context, content: dict[str, Any]) -> Precision:
    images, kept, right = (content[name] for name in ("images", "kept", "right"))
    return Precision(images, kept, right, context.config.evaluate.level, content["source"])


def other_thresholds(iteration: Iteration) -> str:
    """The share of right labels from each of some confidences on, in words; "" if it is not known."""
    content = _read(iteration)
    return "" if content is None else by_threshold(content["curve"])


def summary(context: Context, iteration: Iteration) -> dict[str, object]:
    """Return the estimate for evaluation.json: that of the record, with share, low, high and sentence."""
    content = _read(iteration)
    if content is None:
        return {}
    estimated = _precision(context, content)
    low, high = estimated.interval
    shown = {"share": estimated.share, "low": low, "high": high, "sentence": estimated.sentence()}
    shown["by_threshold"] = by_threshold(content["curve"])
    numbers = {name: value for name, value in content.items() if name != "bins"}
    return {_RESULT: {**numbers, **shown}, **_chosen(iteration)}


def _read(iteration: Iteration) -> dict[str, Any] | None:
    record = read_record(iteration.selection.record) or {}
    content: dict[str, Any] | None = (record.get("result") or {}).get(_RESULT)
    return content
