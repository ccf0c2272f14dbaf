"""Arrange what the models predict for labelled images: reliability, confusions, gains by class, mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.metrics.classification import (
    Floats,
    Ints,
    Reliability,
    confusion,
    correct,
    reliability,
    worst_pairs,
)
from noisystudent.metrics.scores import load_predictions
from noisystudent.metrics.temperature import scaled
from noisystudent.report import figures
from noisystudent.report.figures import finite
from noisystudent.report.read import SETS, Model, Run, last_student
from noisystudent.report.robustness import dumbbells

WORST_PAIRS = 8
MOST_GAINS = 30  # classes in the figure of gains


def predicted(
    run: Run, classes: Sequence[str], plots: dict[str, figures.Figure]
) -> dict[str, Mapping[str, Any] | None]:
    """The sections reliability, confusion and mistakes, from predictions on test, or on val without one.

    Earlier students are left out: the curves of all could not be told apart. Only one file of predictions is
    in memory at a time.
    """
    # Thumbnails exist in finished runs only.
    mistakes = run.iterations[-1].mistakes if run.iterations else None
    name = next((s for s in reversed(SETS) if any(s in m.predictions for m in run.models)), SETS[0])
    ready = [m for m in run.models if name in m.predictions]
    if not ready:
        return {"reliability": None, "confusion": None, "mistakes": mistakes}
    last = last_student(ready) or ready[-1]
    shown = [m for m in ready if m.role != "student" and m is not last] + [last]
    curves: list[tuple[Model, Reliability]] = []
    shares: list[tuple[Model, NDArray[np.float64]]] = []
    matrices: list[tuple[Model, str]] = []
    for model in shown:
        probs, labels = load_predictions(model.predictions[name])
        names = classes if len(classes) == probs.shape[1] else [str(i) for i in range(probs.shape[1])]
        curves.append((model, reliability(probs, labels, run.ece_bins)))
        shares.append((model, _by_class(probs, labels)))
        if len(names) <= figures.NAMED_CLASSES:
            matrices.append((model, plot := f"confusion-{len(matrices)}"))
            plots[plot] = figures.confusion_matrix(confusion(probs, labels), names)
    worst = worst_pairs(probs, labels, WORST_PAIRS)  # of the last student, which came last
    pairs = [(names[true], names[wrong], *counts) for true, wrong, *counts in worst]
    fitted = finite(last.calibrated.get("temperature")) or 1.0
    after: tuple[Model, Reliability] | None = None
    if fitted != 1.0:
        after = (last, reliability(scaled(probs, fitted), labels, run.ece_bins))
    plots["reliability"] = figures.reliability_diagram(curves, after)
    calibrated = any(model.calibrated.get(name) for model, _ in curves)
    gains = _gains(shares, names, plots)
    return {
        "reliability": {"set": name, "curves": curves, "after": after is not None, "calibrated": calibrated},
        "confusion": {"set": name, "model": last, "matrices": matrices, "pairs": pairs, "gains": gains},
        "mistakes": mistakes,
    }


def _by_class(probs: Floats, labels: Ints) -> NDArray[np.float64]:
    """(K,) share of the images of each class that is predicted correctly; NaN for a class without images."""
    images = np.bincount(labels, minlength=probs.shape[1])
    right = np.bincount(labels[correct(probs, labels)], minlength=probs.shape[1])
    return np.where(images > 0, right / np.maximum(images, 1), np.nan)


def _gains(
    shares: Sequence[tuple[Model, NDArray[np.float64]]],
    names: Sequence[str],
    plots: dict[str, figures.Figure],
) -> dict[str, Any] | None:
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
    # A class name may occur twice, so rows are named by number. Accuracies are far from 0.
    series = [(model, {str(k): float(own[k]) for k in order}) for model, own in (student, *rivals)]
    rows, texts = [str(k) for k in order], [names[k] for k in order]
    plots["gains"] = dumbbells(rows, series, "accuracy of the class", texts=texts, from_zero=False)
    best, worst = order[0], order[-1]
    return {
        "rival": rivals[0][0],
        "shown": len(order),
        "gained": int((gain > 0).sum()),
        "lost": int((gain < 0).sum()),
        "best": (names[best], gain[best]),
        "worst": (names[worst], gain[worst]),
    }
