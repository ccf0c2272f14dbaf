"""Counts for the explorer of threshold and quota: the page computes other selections from them.

The page applies the rule of mode paper. It needs only the images of each class between the thresholds that it
offers, so it is exact for these, however large the pool is.
"""

from __future__ import annotations

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
from noisystudent.report.read import Iteration, Run

# The counts are in the page, so more classes, or more of all iterations, would make it too large.
MOST_CLASSES = 1000
_MOST_ROWS = 4000
_ROWS = 1 << 17  # rows in memory at a time
# Reasons of images that no threshold brings back.
_EXCLUDED = pa.array(["too_confident", "not_looked_at", "teachers_disagree", "junk"])


def explorer(run: Run) -> dict[str, Any] | None:
    """Return the counts of each iteration with a selection, last one first; None if there is none.

    Returns:
        thresholds: `GRID`. classes: names. iterations: for each `index`; `pool`, rows of `precision.bins`;
        `known`, rows [class, column, images, right ones] of labelled images, or None; `source` of these; and
        the settings of the run: `threshold`, a place in `GRID`, `quota` or None, `duplicate` and `mode`.

    Raises:
        RunError: a selection cannot be read.
    """
    classes = [str(name) for name in (run.dataset or {}).get("classes", ())]
    if not 0 < len(classes) <= MOST_CLASSES:
        return None
    iterations = [
        {
            "index": iteration.index,
            "pool": _counts(iteration.selection_file, len(classes)).tolist(),
            "known": iteration.expected.get("bins"),
            "source": iteration.expected.get("source"),
            **_settings(iteration, len(classes)),
        }
        for iteration in reversed(run.iterations)
        if iteration.selection_file is not None
    ][: _MOST_ROWS // len(classes)]
    return {"thresholds": GRID, "classes": classes, "iterations": iterations} if iterations else None


def _counts(file: Path, num_classes: int) -> NDArray[np.int64]:
    """(K, columns) counts of `precision.bins` over the pool images that the selection could keep."""
    counts = np.zeros((num_classes, len(GRID) + 1), np.int64)
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_ROWS, columns=["label", "confidence", "reason"]):
                reason = batch["reason"].cast(pa.string())
                batch = batch.filter(pc.invert(pc.is_in(reason, value_set=_EXCLUDED)))
                label, confidence = batch["label"].to_numpy(), batch["confidence"].to_numpy()
                counts += bins(label, confidence, num_classes)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RunError(f"{file} cannot be read ({first_line(error)}); select again") from error
    return counts


def _settings(iteration: Iteration, num_classes: int) -> dict[str, Any]:
    """Threshold, quota and duplicates of the run, where the explorer begins, and its mode."""
    chance, default, fields = 1 / num_classes, SelectionConfig(), iteration.settings
    threshold = fields.get("threshold", default.threshold)
    if fields.get("relative", default.relative):
        threshold = chance + threshold * (1 - chance)
    return {
        "threshold": int(np.abs(np.array(GRID) - threshold).argmin()),
        "quota": fields.get("per_class", default.per_class),
        "duplicate": fields.get("duplicate", default.duplicate),
        "mode": fields.get("mode", default.mode),
    }
