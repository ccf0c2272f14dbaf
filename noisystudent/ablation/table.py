"""Compute the table from finished runs: means over seeds, intervals, paired differences, the gap closed."""

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
from noisystudent.ablation.runs import Run
from noisystudent.data.index import Index
from noisystudent.errors import RunError
from noisystudent.metrics import classification, paired, scores
from noisystudent.run.rundir import ModelDir


@dataclass(frozen=True, slots=True)
class Score:
    """Predictions of one model on one set, as right or wrong.

    Attributes:
        images: name of the set, test, or val if there is no test.
        hits: (N,) True for each image whose predicted class is correct.
        labels: (N,) labels.
        hashes: (N, 16) uint8 content hashes of the images. Other images can have the same labels.
    """

    images: str
    hits: NDArray[np.bool_]
    labels: NDArray[np.int64]
    hashes: NDArray[np.uint8]

    @property
    def top1(self) -> float:
        """Share of the images whose predicted class is correct."""
        return float(self.hits.mean())

    def comparable(self, other: Score) -> bool:
        """True if both scores are on the same images with the same labels, row by row."""
        same = np.array_equal(self.hashes, other.hashes) and np.array_equal(self.labels, other.labels)
        return same and self.images == other.images


Scores = dict[str, dict[int, Score]]
"""Cell name -> seed -> score, of finished runs only."""


class _Span(NamedTuple):
    """A number and its interval; None if unknown."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


def summary(matrix: Matrix, runs: Sequence[Run], failed: Mapping[str, str], command: str) -> dict[str, Any]:
    """Content of ablation.json, computed from the runs that are done.

    Args:
        matrix: cells and seeds.
        runs: every run of every cell, done or not.
        failed: name of a run -> why it failed.
        command: command line of the call.
    """
    scores = _scores(matrix, runs)
    return {
        "name": matrix.name,
        "recipe": matrix.recipe,
        "base": matrix.base.name,
        "common": _yaml(matrix.common),
        "sets": sorted({score.images for by_seed in scores.values() for score in by_seed.values()}),
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
    path = ModelDir(model.last.path).predictions(run.judged)
    index = run.folder.data.store / f"{run.judged}.arrow"
    try:
        return _read(path, path.stat().st_mtime_ns, run.judged, index)
    except RunError as error:
        raise RunError(f"{error}; delete it, and the same command makes it again") from error


# The table is computed again whenever a run ends. The time of writing is part of the cache's key, so that a
# file that was written again is read again.
@functools.lru_cache(maxsize=4096)
def _read(path: Path, _written: int, images: str, index: Path) -> Score:
    predictions = scores.load_predictions(path)
    hits = classification.correct(predictions.probs, predictions.labels)
    return Score(images, hits, predictions.labels, Index(index).full("content_hash"))


def _row(matrix: Matrix, cell: Cell, scores: Scores, failed: Mapping[str, str]) -> dict[str, Any]:
    """A cell of ablation.json."""
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
        "overrides": _yaml(cell.overrides),
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


def _yaml(overrides: Mapping[str, Any]) -> str:
    if not overrides:
        return ""
    return yaml.safe_dump(dict(overrides), sort_keys=False, allow_unicode=True).strip()


def _mean(values: Sequence[float], level: float) -> _Span:
    """Mean over seeds and its interval. A single seed has no interval."""
    if len(values) > 1:
        return _Span(*paired.paired_over_seeds(values, level))
    return _Span(*values)


def _difference(matrix: Matrix, cell: Cell, scores: Scores) -> tuple[_Span, str | None, float | None]:
    """Difference to the base on the same images and seeds.

    Returns:
        The mean difference and its interval; what the interval is over, 'seeds' if there are several,
        otherwise 'images'; and the p-value over images. All None for the base itself.
    """
    own, base = scores[cell.name], scores[matrix.base.name]
    seeds = [seed for seed in own if seed in base and own[seed].comparable(base[seed])]
    if cell.name == matrix.base.name or not seeds:
        return _Span(), None, None
    config = matrix.base.config.evaluate
    if len(seeds) > 1:
        differences = [own[seed].top1 - base[seed].top1 for seed in seeds]
        return _Span(*paired.paired_over_seeds(differences, config.level)), "seeds", None
    # A single seed: the interval is the paired bootstrap over images, and the p-value is McNemar's.
    (seed,) = seeds
    comparison = paired.compare(own[seed].hits, base[seed].hits, config, seed)
    span = _Span(comparison["difference"], comparison["low"], comparison["high"])
    return span, "images", comparison["p_value"]


def _gap_closed(matrix: Matrix, cell: Cell, scores: Scores) -> float | None:
    """(cell - supervised) / (all labels - supervised), with means over the seeds that all three have.

    None if one of the three has no such seed, or if all labels are not better than the given ones.
    """
    if matrix.supervised is None or matrix.oracle is None:
        return None
    own, supervised, oracle = (scores[each.name] for each in (cell, matrix.supervised, matrix.oracle))
    seeds = [
        seed
        for seed in own
        if seed in supervised
        and seed in oracle
        and own[seed].comparable(supervised[seed])
        and own[seed].comparable(oracle[seed])
    ]
    if not seeds:
        return None
    reached, low, high = (
        float(np.mean([by_seed[seed].top1 for seed in seeds])) for by_seed in (own, supervised, oracle)
    )
    # If all labels are not better, the gap is 0 or negative and a share of it has no meaning.
    return (reached - low) / (high - low) if high > low else None
