"""Arrange the content of a run in sections and render the page; all text from files is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plotly.offline import get_plotlyjs

from noisystudent.config import EvaluateConfig
from noisystudent.report import figures, pool_figures
from noisystudent.report.explorer import explorer
from noisystudent.report.predicted import predicted
from noisystudent.report.progress import changes, current, facts, files, stages
from noisystudent.report.read import SETS, Iteration, Model, Run
from noisystudent.report.robustness import robustness
from noisystudent.report.teachers import about_teachers
from noisystudent.report.templates import environment, reason
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
    "changes": "Changes",
    "robustness": "Robustness",
    "curves": "Curves",
    "confidence": "Confidence",
    "balance": "Balance",
    "explorer": "Explorer",
    "reliability": "Reliability",
    "confusion": "Confusions",
    "mistakes": "Mistakes",
    "gallery": "Gallery",
    "time": "Time",
    "data": "Data",
    "environment": "Environment",
    "config": "Configuration",
    "files": "Files",
}
TONES = {"improved": "good", "unproven": "open", "not better": "bad", None: "open"}
RIVALS = {
    "teacher": "against the teacher",
    "control": "against the control",
    "control-compute": "against the control of the same compute",
    "control-probe": "against the linear probe",
}
LEVEL = EvaluateConfig().level
GALLERY_CLASSES = 100  # the thumbnails are in the page, so more classes would make it too large
GALLERY_BYTES = 2_000_000  # of all thumbnails of the pool


def render(run: Run) -> str:
    """Return the HTML of the whole page. It loads nothing. The same files always give the same text."""
    classes = tuple(str(name) for name in (run.dataset or {}).get("classes", ()))
    plots: dict[str, figures.Figure] = {}
    sections = {
        "verdict": _verdict(run),
        "accuracy": _accuracy(run, plots),
        "changes": changes(run),
        "robustness": robustness(run, plots),
        "curves": _curves(run.models, plots),
        "confidence": _confidence(run.iterations, plots),
        "balance": _balance(run.iterations, plots),
        "explorer": explorer(run),
        **predicted(run, classes, plots),
        "gallery": _gallery(run.iterations),
        "time": stages(run),
        "data": {"dataset": run.dataset, "ledger": run.ledger, "leaks": run.leaks}
        if run.dataset or run.ledger or run.leaks
        else None,
        "environment": run.environment,
        "config": run.config,
        "files": files(run),
    }
    return (
        environment()
        .get_template("template.html")
        .render(
            run=run,
            facts=facts(run),
            sections={name: section for name, section in sections.items() if section},
            unmeasured=_unmeasured(run, [name for name, section in sections.items() if not section]),
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
    sentence = verdict.get("sentence") or f"There is no verdict yet: the run is not finished. {current(run)}"
    return {
        "tone": TONES[verdict.get("state")],
        "headline": verdict.get("headline") or [sentence],  # older runs have only the sentence
        "sentence": verdict.get("sentence"),
        "set": verdict.get("set"),
        "level": verdict.get("level"),
        "improved": bool(verdict.get("improved")),
        "reasons": verdict.get("reasons") or [],
        "scope": verdict.get("scope"),
        "best": verdict.get("best"),
        "comparisons": [
            (RIVALS.get(rival, f"against {rival}"), rival, row) for rival, row in comparisons.items()
        ],
        "whiskers": whiskers(comparisons),
    }


def _unmeasured(run: Run, missing: Sequence[str]) -> list[str]:
    """Sentences about the sections that have no files, and how to get them."""
    planned = bool((run.fields.get("evaluate") or {}).get("tests"))
    unplanned = {"robustness"} if not planned else set()
    if run.verdict is not None:  # a finished run need not have these
        unplanned |= {"changes", "explorer", "mistakes", "time"}
    others = ", ".join(TITLES[name].lower() for name in missing if name not in unplanned)
    sentences = [f"These sections have no files{'' if run.verdict else ' yet'}: {others}."] if others else []
    if "robustness" in missing and not planned:
        sentences.append(
            "Robustness was not measured. Add --evaluate.tests c to measure it on corrupted images."
        )
    return sentences


def _accuracy(run: Run, plots: dict[str, figures.Figure]) -> Section | None:
    scored = [model for model in run.models if model.scores]
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
        images, level = (run.dataset or {}).get("counts") or {}, (run.verdict or {}).get("level") or LEVEL
        plots["accuracy"] = figures.accuracy(scored, sets, images, level)
        best = {(name, m[0]): _best(scored, name, m[0], m[2]) for name in sets for m in columns[name]}
    controls = {model.role for model in run.models if model.is_control}
    unknown = run.verdict is not None and not controls
    return {"models": scored, "columns": columns, "best": best, "controls": controls, "no_control": unknown}


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
            plots[name] = pool_figures.confidence_histogram(labels["confidence_histogram"])
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
            plots[name] = pool_figures.class_balance(selection["classes"])
            panels.append({"plot": name, "iteration": iteration.index, "selection": selection})
    return panels


def _gallery(iterations: Iterable[Iteration]) -> list[Section]:
    """Thumbnails of the pool, last iteration first: the final student was trained on those labels.

    They are in the page, so earlier iterations and some images of each class are left out if they are many.
    """
    sections, room = [], GALLERY_BYTES
    for iteration in reversed(list(iterations)):
        classes = iteration.gallery[:GALLERY_CLASSES]
        size = sum(len(image["jpeg"]) for group in classes for image in group["images"])
        if not size or room <= 0:
            continue
        every = math.ceil(size / room)  # a third of the images, if they are up to three times too large
        thinned = [{**group, "images": group["images"][::every]} for group in classes]
        room -= sum(len(image["jpeg"]) for group in thinned for image in group["images"])
        voted = any(image.get("agreement") is not None for group in thinned for image in group["images"])
        reasons = {reason(image): None for group in thinned for image in group["images"]}
        sections.append(
            {
                "index": iteration.index,
                "classes": thinned,
                "total": len(iteration.gallery),
                "voted": voted,
                "reasons": list(reasons),
            }
        )
    return sections
