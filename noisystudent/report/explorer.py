"""Counts for the explorer of threshold and quota: the page computes other selections from them.

The page applies the rule of mode paper. It needs only the images of each class between the thresholds that it
offers, so it is exact for these, however large the pool is.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisystudent.config import SelectionConfig
from noisystudent.errors import RunError, first_line
from noisystudent.metrics.precision import GRID, bins
from noisystudent.report.read import Iteration, Record, Run

# The counts are in the page, so more classes, or more of all iterations, would make it too large.
MOST_CLASSES = 1000
_MOST_ROWS = 4000
_ROWS = 1 << 17  # rows in memory at a time
# Reasons of images that no threshold brings back.
_EXCLUDED = pa.array(["too_confident", "not_looked_at", "teachers_disagree", "junk"])

# Fields that decide, with mode and threshold, which of the other images are kept, with their defaults.
_DEFAULTS = {
    name: getattr(SelectionConfig(), name)
    for name in ("relative", "per_class", "duplicate", "top_fraction", "reassign")
}


def explorer(run: Run) -> dict[str, Any] | None:
    """Return the counts of each iteration with a selection, last one first; None if there is none.

    Returns:
        thresholds: `GRID`. classes: names. defaults: `_DEFAULTS`. iterations: for each `index`; `pool`, rows
        of `precision.bins`; `known`, rows [class, column, images, right ones] of labelled images, or None;
        `source` of these; `kept` and `total` of the run, whose rule may be another; and where the explorer
        begins, see `_settings`.

    Raises:
        RunError: a selection cannot be read.
    """
    classes = [str(name) for name in (run.dataset or {}).get("classes", ())]
    if not 0 < len(classes) <= MOST_CLASSES:
        return None
    iterations = [
        _iteration(iteration, iteration.selection_file, len(classes))
        for iteration in reversed(run.iterations)
        if iteration.selection_file is not None
    ][: _MOST_ROWS // len(classes)]
    shared = {"thresholds": GRID, "classes": classes, "defaults": _DEFAULTS}
    return shared | {"iterations": iterations} if iterations else None


def _iteration(iteration: Iteration, file: Path, num_classes: int) -> dict[str, Any]:
    counts, kept, total = _counts(file, num_classes)
    return {
        "index": iteration.index,
        "pool": counts.tolist(),
        "known": iteration.expected.get("bins"),
        "source": iteration.expected.get("source"),
        "kept": kept,
        "total": total,
        **_settings(iteration.settings, num_classes, int(counts.sum(axis=1).max())),
    }


def _counts(file: Path, num_classes: int) -> tuple[NDArray[np.int64], int, int]:
    """Counts of a selection.

    Returns:
        (K, columns) counts of `precision.bins` over the pool images that it could keep, and the numbers of
        images that it has kept, without repeats and with them.
    """
    counts, kept, total = np.zeros((num_classes, len(GRID) + 1), np.int64), 0, 0
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_ROWS, columns=["label", "confidence", "reason", "repeats"]):
                repeats = batch["repeats"].to_numpy()
                kept, total = kept + int((repeats > 0).sum()), total + int(repeats.sum())
                reason = batch["reason"].cast(pa.string())
                batch = batch.filter(pc.invert(pc.is_in(reason, value_set=_EXCLUDED)))
                label, confidence = batch["label"].to_numpy(), batch["confidence"].to_numpy()
                counts += bins(label, confidence, num_classes)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RunError(f"{file} cannot be read ({first_line(error)}); select again") from error
    return counts, kept, total


def _settings(settings: Record, num_classes: int, largest: int) -> dict[str, Any]:
    """Where the explorer begins: at the selection of the run, or where its rule comes nearest to that.

    Args:
        settings: fields of `selection`.
        num_classes: number of classes.
        largest: images of the largest class. A quota as large keeps all images above the threshold.

    Returns:
        `threshold`, a place in `GRID`, `quota` or None for the mean, `duplicate`; `mode` of the run; and
        `changed`, names of the fields in `_DEFAULTS` that are no defaults in the run.
    """
    chance, fields = 1 / num_classes, {**asdict(SelectionConfig()), **settings}
    balanced, threshold = fields["mode"] not in ("threshold", "all"), fields["threshold"]
    if fields["relative"]:
        threshold = chance + threshold * (1 - chance)
    if fields["mode"] == "all":
        threshold = 0.0
    return {
        "threshold": int(np.abs(np.array(GRID) - threshold).argmin()),
        "quota": fields["per_class"] if balanced else max(1, largest),
        "duplicate": fields["duplicate"] and balanced,
        "mode": fields["mode"],
        "changed": [name for name, default in _DEFAULTS.items() if fields[name] != default],
    }
