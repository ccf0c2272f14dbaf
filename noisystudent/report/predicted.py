"""Arrange what the models predict for labelled images: reliability, confusions, gains by class, mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.metrics.classification import Reliability, confusion, correct, reliability, worst_pairs
from noisystudent.metrics.scores import Predictions, load_predictions
from noisystudent.metrics.temperature import scaled
from noisystudent.report import figures
from noisystudent.report.figures import finite
from noisystudent.report.read import SETS, Model, Run
from noisystudent.report.robustness import dumbbells

Section = dict[str, Any]

WORST_PAIRS = 8
MOST_GAINS = 30  # classes in the figure of gains


def predicted(
    run: Run, classes: Sequence[str], plots: dict[str, figures.Figure]
) -> dict[str, Mapping[str, Any] | None]:
    """The sections reliability, confusion and mistakes, from predictions on test, or on val without one.

    Earlier students are left out. Only one file of predictions is in memory at a time.
    """
    name = next((s for s in reversed(SETS) if any(s in m.predictions for m in run.models)), SETS[0])
    ready = [m for m in run.models if name in m.predictions]
    students = [m for m in ready if m.role == "student"]
    # The curves of all students could not be told apart.
    shown = [m for m in ready if m.role != "student" or m is students[-1]]
    shown.sort(key=lambda model: (model.role == "student", model.iteration))
    curves: list[tuple[Model, Reliability]] = []
    matrices: list[tuple[Model, str | None]] = []
    shares: list[tuple[Model, NDArray[np.float64]]] = []
    pairs: list[tuple[Any, ...]] = []
    after: tuple[Model, Reliability] | None = None
    last = next(reversed(students or shown), None)
    for model in shown:
        probs, labels = load_predictions(model.predictions[name])
        names = classes if len(classes) == probs.shape[1] else [str(i) for i in range(probs.shape[1])]
        curves.append((model, reliability(probs, labels, run.ece_bins)))
        shares.append((model, _by_class(Predictions(probs, labels))))
        drawn = len(names) <= figures.NAMED_CLASSES
        if drawn:
            plots[f"confusion-{len(matrices)}"] = figures.confusion_matrix(confusion(probs, labels), names)
        matrices.append((model, f"confusion-{len(matrices)}" if drawn else None))
        if model is last:
            fitted = finite(model.calibrated.get("temperature")) or 1.0
            if fitted != 1.0:
                after = (model, reliability(scaled(probs, fitted), labels, run.ece_bins))
            worst = worst_pairs(probs, labels, WORST_PAIRS)
            pairs = [(names[true], names[wrong], *counts) for true, wrong, *counts in worst]
    if not shown:
        return {"reliability": None, "confusion": None, "mistakes": _mistakes(run)}
    plots["reliability"] = figures.reliability_diagram(curves, after)
    return {
        "reliability": {
            "set": name,
            "curves": curves,
            "after": after is not None,
            "calibrated": any(model.calibrated.get(name) for model, _ in curves),
        },
        "confusion": {
            "set": name,
            "model": last,
            "matrices": [(model, plot) for model, plot in matrices if plot],
            "pairs": pairs,
            "gains": _gains(shares, names, plots),
        },
        "mistakes": _mistakes(run),
    }


def _by_class(predictions: Predictions) -> NDArray[np.float64]:
    """(K,) share of the images of each class that is predicted correctly; NaN for a class without images."""
    classes = predictions.probs.shape[1]
    images = np.bincount(predictions.labels, minlength=classes)
    right = np.bincount(predictions.labels[correct(*predictions)], minlength=classes)
    return np.where(images > 0, right / np.maximum(images, 1), np.nan)


def _gains(
    shares: Sequence[tuple[Model, NDArray[np.float64]]],
    names: Sequence[str],
    plots: dict[str, figures.Figure],
) -> Section | None:
    """Figure of the accuracy of each class, sorted by what the last student gains over its rival.

    The rival is the first control, or the teacher without one. Of many classes the figure has those with the
    largest gains and losses. None: there is no student, or nothing to compare it with.
    """
    student = next((own for own in shares if own[0].role == "student"), None)
    rivals = sorted((own for own in shares if own is not student), key=lambda own: not own[0].is_control)
    if student is None or not rivals:
        return None
    gain = student[1] - rivals[0][1]
    order = [int(k) for k in np.argsort(-gain, kind="stable") if not np.isnan(gain[k])]
    if len(order) > MOST_GAINS:
        order = order[: MOST_GAINS // 2] + order[-MOST_GAINS // 2 :]
    if not order:
        return None
    # A class name may occur twice, so rows are named by number until the end.
    series = [(model, {str(k): float(own[k]) for k in order}) for model, own in (student, *rivals)]
    figure = dumbbells([str(k) for k in order], series, "accuracy of the class")
    ticks = [figures.label(names[k]) for k in order]
    for trace in figure["data"][1:]:
        trace["text"] = ticks
    figure["layout"]["yaxis"]["ticktext"] = ticks
    del figure["layout"]["xaxis"]["rangemode"]  # accuracies are far from 0
    plots["gains"] = figure
    best, worst = order[0], order[-1]
    return {
        "rival": rivals[0][0],
        "shown": len(order),
        "gained": int((gain > 0).sum()),
        "lost": int((gain < 0).sum()),
        "best": (names[best], gain[best]),
        "worst": (names[worst], gain[worst]),
    }


def _mistakes(run: Run) -> Mapping[str, Any] | None:
    """What the last student gets wrong, with thumbnails; None in an unfinished or an older run."""
    return run.iterations[-1].mistakes if run.iterations else None
