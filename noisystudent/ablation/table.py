"""From finished runs to one table: means over seeds, their intervals, paired differences, the gap closed."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from noisystudent.ablation.matrix import Cell, Matrix, run_name
from noisystudent.ablation.running import Run
from noisystudent.evaluate import metrics, suite, verdict
from noisystudent.rundir import read_json


@dataclass(frozen=True, slots=True)
class Score:
    """What one model did on one set.

    Attributes:
        images: test, or val where there is none.
        hits: (N,) which images it is right on.
        labels: (N,), to tell another set of images from this one.
    """

    images: str
    hits: NDArray[np.bool_]
    labels: NDArray[np.int64]

    @property
    def top1(self) -> float:
        """Share it is right on."""
        return float(self.hits.mean())

    def comparable(self, other: Score) -> bool:
        """Whether both are of the same images, as far as labels tell."""
        return self.images == other.images and np.array_equal(self.labels, other.labels)


Scores = dict[str, dict[int, Score]]
"""Cell to seed to score; of finished runs only."""


class _Span(NamedTuple):
    """A number and its interval."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


def summary(matrix: Matrix, runs: Sequence[Run], failed: Mapping[str, str], command: str) -> dict[str, Any]:
    """The content of ablation.json, of the runs that are done.

    Args:
        matrix: the cells.
        runs: every run of every cell, done or not.
        failed: run to reason.
        command: how it was called.
    """
    scores = _scores(matrix, runs)
    return {
        "name": matrix.name,
        "recipe": matrix.recipe,
        "base": matrix.base.name,
        "common": _yaml(matrix.common),
        "sets": sorted({score.images for found in scores.values() for score in found.values()}),
        "level": matrix.base.config.evaluate.level,
        "seeds": list(matrix.seeds),
        "all_labels": list(matrix.all_labels),
        "command": command,
        "cells": [_row(matrix, cell, scores, failed) for cell in matrix.cells],
    }


def _scores(matrix: Matrix, runs: Sequence[Run]) -> Scores:
    scores: Scores = {cell.name: {} for cell in matrix.cells}
    finished = {run.name: run for run in runs if run.done}
    for cell in matrix.cells:
        for seed in matrix.seeds:
            run = finished.get(run_name(cell.folder, seed))
            if run is not None:
                scores[cell.name][seed] = _score(run, cell)
    return scores


def _score(run: Run, cell: Cell) -> Score:
    model = next(m for m in run.graph.models() if (m.iteration, m.role) == cell.of)
    images = str(read_json(run.folder / "verdict.json")["set"])
    path = model.last.path / f"predictions-{images}.npz"
    return _read(path, path.stat().st_mtime_ns, images)


@functools.lru_cache(maxsize=4096)
def _read(path: Path, _written: int, images: str) -> Score:
    found = suite.load_predictions(path)
    return Score(images, metrics.correct(found.probs, found.labels), found.labels)


def _row(matrix: Matrix, cell: Cell, scores: Scores, failed: Mapping[str, str]) -> dict[str, Any]:
    own, level = scores[cell.name], matrix.base.config.evaluate.level
    values = [score.top1 for score in own.values()]
    mean = _mean(values, level)
    difference, over, p_value = _difference(matrix, cell, scores)
    names = {seed: run_name(cell.folder, seed) for seed in matrix.seeds}
    role = cell.of[1] if cell.of[0] == 0 else f"{cell.of[1]}-{cell.of[0]}"
    return {
        "name": cell.name,
        "kind": cell.kind,
        "of": role,
        "folder": cell.folder,
        "overrides": _yaml(cell.said),
        "set": next((score.images for score in own.values()), None),
        "n": len(values),
        "top1": mean.value,
        "low": mean.low,
        "high": mean.high,
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "over": over,
        "p_value": p_value,
        "gap_closed": _gap_closed(matrix, cell, scores),
        "per_seed": {str(seed): score.top1 for seed, score in own.items()},
        "failed": {str(seed): failed[name] for seed, name in names.items() if name in failed},
        "missing": [seed for seed, name in names.items() if seed not in own and name not in failed],
    }


def _yaml(said: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(said), sort_keys=False, allow_unicode=True).strip() if said else ""


def _mean(values: Sequence[float], level: float) -> _Span:
    """Over seeds; one has no interval."""
    if len(values) > 1:
        return _Span(*verdict.paired_over_seeds(values, level))
    return _Span(*values)


def _difference(matrix: Matrix, cell: Cell, scores: Scores) -> tuple[_Span, str | None, float | None]:
    """To the base on the same images: over seeds where there are several, else over the images of one."""
    own, base = scores[cell.name], scores[matrix.base.name]
    seeds = [seed for seed in own if seed in base and own[seed].comparable(base[seed])]
    if cell.name == matrix.base.name or not seeds:
        return _Span(), None, None
    config = matrix.base.config.evaluate
    if len(seeds) > 1:
        differences = [own[seed].top1 - base[seed].top1 for seed in seeds]
        return _Span(*verdict.paired_over_seeds(differences, config.level)), "seeds", None
    (seed,) = seeds
    found = verdict.compare(own[seed].hits, base[seed].hits, config, seed)
    return _Span(found["difference"], found["low"], found["high"]), "images", found["p_value"]


def _gap_closed(matrix: Matrix, cell: Cell, scores: Scores) -> float | None:
    """(cell - supervised) / (all labels - supervised), of means over the seeds that all three have."""
    if matrix.supervised is None or matrix.ceiling is None:
        return None
    own, least, most = (scores[each.name] for each in (cell, matrix.supervised, matrix.ceiling))
    seeds = [
        seed
        for seed in own
        if seed in least
        and seed in most
        and own[seed].comparable(least[seed])
        and own[seed].comparable(most[seed])
    ]
    if not seeds:
        return None
    mine, low, high = (float(np.mean([found[seed].top1 for seed in seeds])) for found in (own, least, most))
    return (mine - low) / (high - low) if high > low else None
