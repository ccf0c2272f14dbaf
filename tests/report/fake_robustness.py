"""Robustness results of every model of a fake run. Means are the means of their parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from noisystudent.robustness.measures import CORRUPTIONS, PERTURBATIONS

EPS = (2, 4, 8, 16)


def add(run: Path, images: int) -> None:
    """Write the results into every evaluation.json."""
    paths = {
        int(path.parent.name.rpartition("-")[2]): path for path in run.glob("iteration-*/evaluation.json")
    }
    contents = {index: json.loads(paths[index].read_text()) for index in sorted(paths)}
    results = {
        (index, role): model_results(sets["test"]["top1"], index, role, images)
        for index, content in contents.items()
        for role, sets in content["models"].items()
    }
    for (index, role), own in results.items():
        own["to_teacher"] = ratios(own, results[0, "teacher"])
        rivals = {"control": (index, "control"), "teacher": (0, "teacher")}
        own["minus"] = {
            name: minus(own, results[rival])
            for name, rival in rivals.items()
            if rival in results and rival != (index, role)
        }
        contents[index].setdefault("robustness", {})[role] = own
    for index, content in contents.items():
        paths[index].write_text(json.dumps(content))


def model_results(top1: float, index: int, role: str, images: int) -> dict[str, Any]:
    rng = np.random.Generator(np.random.Philox(index * 10 + len(role)))
    frail = 1.0 if role != "student" else 0.8**index
    added = frail * rng.uniform(0.02, 0.1, (len(CORRUPTIONS), 1)) * np.arange(1, 6)
    errors = np.clip(1 - top1 + added, 0, 0.97)
    flips = frail * rng.uniform(0.02, 0.2, len(PERTURBATIONS))
    by_severity = [{str(s): float(e) for s, e in enumerate(row, start=1)} for row in errors]
    return {
        "clean": mean(top1),
        "c": mean(errors.mean())
        | {"errors": dict(zip(CORRUPTIONS, by_severity, strict=True)), "images": images},
        "p": mean(flips.mean())
        | {
            "flips": dict(zip(PERTURBATIONS, flips.tolist(), strict=True)),
            "t5d": dict(zip(PERTURBATIONS, (21 * flips).tolist(), strict=True)),
        },
        "fgsm": {str(eps): mean(top1 * np.exp(-frail * eps / 6)) for eps in EPS},
        "pgd": {"16": mean(0.02 / frail), "16-random": mean(0.03 / frail)},
        "calibration": {
            "nll": 0.9,
            "brier": 0.4,
            "ece": 0.1 * frail,
            "rms": 0.12 * frail,
            "aurra": 1 - 0.3 * frail,
        },
        "images": images,
        "constants": 32,
        "frost": True,
    }


def mean(value: float, half: float = 0.0137) -> dict[str, float]:
    return {"value": float(value), "low": float(value) - half, "high": float(value) + half}


def ratios(own: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    mce = np.mean(
        [
            sum(own["c"]["errors"][name].values()) / sum(other["c"]["errors"][name].values())
            for name in CORRUPTIONS
        ]
    )
    mfr = np.mean([own["p"]["flips"][name] / other["p"]["flips"][name] for name in PERTURBATIONS])
    return {"mce": float(mce), "relative_mce": 0.9, "mfr": float(mfr)}


def minus(own: dict[str, Any], other: dict[str, Any]) -> dict[str, dict[str, float]]:
    differences = {test: mean(own[test]["value"] - other[test]["value"]) for test in ("clean", "c", "p")}
    attacks = {
        f"fgsm/{eps}": mean(own["fgsm"][str(eps)]["value"] - other["fgsm"][str(eps)]["value"]) for eps in EPS
    }
    return differences | attacks
