"""Arrange the content of a run in sections and render the page; all text from files is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plotly.offline import get_plotlyjs

from noisystudent.metrics.classification import Reliability, confusion, reliability, worst_pairs
from noisystudent.metrics.scores import load_predictions
from noisystudent.report import figures
from noisystudent.report.explorer import explorer
from noisystudent.report.read import SETS, Iteration, Model, Run
from noisystudent.report.robustness import robustness
from noisystudent.report.teachers import about_teachers
from noisystudent.report.templates import environment
from noisystudent.report.whiskers import whiskers

Section = dict[str, Any]

# (key, heading, True if a larger value is better)
METRICS = (
    ("top1", "Top-1", True),
    ("top5", "Top-5", True),
    ("nll", "NLL", False),
    ("ece", "ECE", False),
    ("brier", "Brier", False),
)
TITLES = {
    "verdict": "Verdict",
    "accuracy": "Accuracy",
    "robustness": "Robustness",
    "curves": "Curves",
    "confidence": "Confidence",
    "balance": "Balance",
    "explorer": "Explorer",
    "reliability": "Reliability",
    "confusion": "Confusions",
    "gallery": "Gallery",
    "data": "Data",
    "environment": "Environment",
    "config": "Configuration",
}
TONES = {"improved": "good", "unproven": "open", "not better": "bad", None: "open"}
RIVALS = {
    "teacher": "against the teacher",
    "control": "against the control",
    "control-compute": "against the control of the same compute",
    "control-probe": "against the linear probe",
}
GALLERY_CLASSES = 100  # the thumbnails are in the page, so more classes would make it too large
WORST_PAIRS = 8


def render(run: Run) -> str:
    """Return the HTML of the whole page. It loads nothing. The same files always give the same text."""
    classes = tuple(str(name) for name in (run.dataset or {}).get("classes", ()))
    plots: dict[str, figures.Figure] = {}
    explored = explorer(run)
    sections = {
        "verdict": _verdict(run),
        "accuracy": _accuracy(run.models, plots),
        "robustness": robustness(run, plots),
        "curves": _curves(run.models, plots),
        "confidence": _confidence(run.iterations, plots),
        "balance": _balance(run.iterations, plots),
        "explorer": explored,
        **_predictions(run, classes, plots),
        "gallery": _gallery(run.iterations),
        "data": {"dataset": run.dataset, "ledger": run.ledger, "leaks": run.leaks}
        if run.dataset or run.ledger or run.leaks
        else None,
        "environment": run.environment,
        "config": run.config,
    }
    return (
        environment()
        .get_template("template.html")
        .render(
            run=run,
            sections={name: section for name, section in sections.items() if section},
            unmeasured=_unmeasured([name for name, section in sections.items() if not section]),
            titles=TITLES,
            rivals=RIVALS,
            plots=plots,
            plotly=get_plotlyjs(),
        )
    )


def _verdict(run: Run) -> Section:
    verdict = run.verdict or {}
    comparisons: Mapping[str, Any] = {
        rival: row for rival, row in (verdict.get("comparisons") or {}).items() if row
    }
    sentence = verdict.get("sentence") or "There is no verdict yet: the run is not finished."
    return {
        "tone": TONES[verdict.get("state")],
        "headline": verdict.get("headline") or [sentence],  # older runs have only the sentence
        "sentence": verdict.get("sentence"),
        "set": verdict.get("set"),
        "level": verdict.get("level"),
        "reasons": verdict.get("reasons") or [],
        "scope": verdict.get("scope"),
        "best": verdict.get("best"),
        "comparisons": [
            (RIVALS.get(rival, f"against {rival}"), rival, row) for rival, row in comparisons.items()
        ],
        "whiskers": whiskers(comparisons),
    }


def _unmeasured(missing: Sequence[str]) -> list[str]:
    """Sentences about the sections that have no files, and how to get them."""
    others = ", ".join(TITLES[name].lower() for name in missing if name != "robustness")
    sentences = [f"These sections have no files yet: {others}."] if others else []
    if "robustness" in missing:
        sentences.append("Robustness was not measured. Add --evaluate.tests c to measure it on corrupted images.")
    return sentences


def _accuracy(models: Sequence[Model], plots: dict[str, figures.Figure]) -> Section | None:
    scored = [model for model in models if model.scores]
    sets = [name for name in SETS if any(name in model.scores for model in scored)]
    if not sets:
        return None
    # Test comes first: a phone shows only the first columns of the table without scrolling.
    columns = {
        name: [m for m in METRICS if any(m[0] in model.scores.get(name, {}) for model in scored)]
        for name in reversed(sets)
    }
    best: dict[tuple[str, str], float | None] = {}
    if len(scored) > 1:
        plots["accuracy"] = figures.accuracy(scored, sets)
        best = {(name, m[0]): _best(scored, name, m[0], m[2]) for name in sets for m in columns[name]}
    controls = {model.role for model in models if model.is_control}
    return {"models": scored, "columns": columns, "best": best, "controls": controls}


def _best(models: Iterable[Model], name: str, metric: str, more: bool) -> float | None:
    values = [figures.finite(model.scores.get(name, {}).get(metric)) for model in models]
    known = [value for value in values if value is not None]
    return (max if more else min)(known, default=None)


def _curves(models: Sequence[Model], plots: dict[str, figures.Figure]) -> Section | None:
    logged = [model for model in models if model.loss or model.val_top1]
    if not logged:
        return None
    plots["curves"] = figures.learning_curves(logged)
    return {"models": logged}


def _confidence(iterations: Iterable[Iteration], plots: dict[str, figures.Figure]) -> list[Section]:
    panels = []
    for iteration in iterations:
        labels = iteration.pseudo_labels or {}
        if labels.get("confidence_histogram"):
            name = f"confidence-{iteration.index}"
            plots[name] = figures.confidence_histogram(labels["confidence_histogram"])
            panel = {"plot": name, "iteration": iteration.index, "labels": labels}
            panel |= {"teachers": about_teachers(labels)}
            panels.append(panel | {"expected": _expected(iteration.selection or {})})
    return panels


def _expected(selection: Mapping[str, Any]) -> list[str]:
    """Sentences about the labels that are expected to be right, and about what was chosen by them."""
    estimate, chosen = selection.get("precision") or {}, selection.get("chosen") or {}
    if not estimate:
        return []
    others = f"right labels by confidence, {estimate['source']}: {estimate['by_threshold']}"
    return [estimate["sentence"], others, *filter(None, [chosen.get("sentence")])]


def _balance(iterations: Iterable[Iteration], plots: dict[str, figures.Figure]) -> list[Section]:
    panels = []
    for iteration in iterations:
        selection = iteration.selection or {}
        if selection.get("classes"):
            name = f"balance-{iteration.index}"
            plots[name] = figures.class_balance(selection["classes"])
            panels.append({"plot": name, "iteration": iteration.index, "selection": selection})
    return panels


def _predictions(
    run: Run, classes: Sequence[str], plots: dict[str, figures.Figure]
) -> dict[str, Section | None]:
    """The sections 'reliability' and 'confusion', from predictions on test, or on val if there is no test.

    Earlier students are left out. Only one file of predictions is in memory at a time.
    """
    sections: dict[str, Section | None] = {"reliability": None, "confusion": None}
    models = run.models
    name = next((s for s in reversed(SETS) if any(s in m.predictions for m in models)), None)
    predicted = [m for m in models if name in m.predictions]
    if name is None:
        return sections
    last = next((m for m in reversed(predicted) if m.role == "student"), predicted[0])
    curves: list[tuple[Model, Reliability]] = []
    for model in predicted:
        if model.role == "student" and model is not last:  # too many curves could not be told apart
            continue
        probs, labels = load_predictions(model.predictions[name])
        curves.append((model, reliability(probs, labels, run.ece_bins)))
        if model is last:
            names = classes if len(classes) == probs.shape[1] else [str(i) for i in range(probs.shape[1])]
            worst = worst_pairs(probs, labels, WORST_PAIRS)
            pairs = [(names[true], names[wrong], *counts) for true, wrong, *counts in worst]
            drawn = len(names) <= figures.NAMED_CLASSES
            if drawn:
                plots["confusion"] = figures.confusion_matrix(confusion(probs, labels), names)
            sections["confusion"] = {"set": name, "model": model, "pairs": pairs, "drawn": drawn}
    if curves:
        plots["reliability"] = figures.reliability_diagram(curves)
        sections["reliability"] = {
            "set": name,
            "curves": curves,
            "calibrated": any(model.calibrated.get(name) for model, _ in curves),
        }
    return sections


def _gallery(iterations: Iterable[Iteration]) -> list[Section]:
    """Thumbnails of the pool, last iteration first: the final student was trained on those labels."""
    return [
        {"index": i.index, "classes": i.gallery[:GALLERY_CLASSES], "total": len(i.gallery)}
        for i in reversed(list(iterations))
        if i.gallery
    ]
