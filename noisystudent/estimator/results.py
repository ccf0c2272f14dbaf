"""What the estimators read from a finished run: its report, and what became of the images of the pool."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""(N,) values of the rows of the pool; -1: none."""


@dataclass(frozen=True)
class Report(os.PathLike[str]):
    """The HTML report of a run, which a notebook shows inline.

    Attributes:
        path: the file. It opens without a network.
    """

    path: Path

    def __fspath__(self) -> str:
        """Path of the file, for `open` and others."""
        return str(self.path)

    def __str__(self) -> str:
        """Path of the file."""
        return str(self.path)

    def _repr_html_(self) -> str:
        """The page in an iframe.

        The iframe holds the page itself (some MB): a link to a file works neither in every notebook server
        nor after the folder was moved. Its scripts run, apart from the notebook (`sandbox`).
        """
        name = f"<code>{html.escape(str(self.path))}</code>"
        if not self.path.is_file():  # the run is deleted together with the estimator, unless it has `out`
            return f"<p>The report {name} does not exist any more.</p>"
        page = html.escape(self.path.read_text(encoding="utf-8"))
        return (
            f"<p>Report: {name}</p>"
            f'<iframe title="Report" srcdoc="{page}" sandbox="allow-scripts allow-popups"'
            ' style="width: 100%; height: 40em; border: 1px solid #8888"></iframe>'
        )


def kept_classes(selection: Path) -> Rows:
    """Return the class of each pool row that a student was trained on; -1 for rows that were not kept.

    Args:
        selection: selection.parquet of an iteration.
    """
    table = pq.read_table(selection, columns=["row", "label", "repeats"])
    row, label, repeats = (column.to_numpy() for column in table.columns)
    classes = np.full(len(row), -1, dtype=np.int64)
    classes[row] = np.where(repeats > 0, label, -1)
    return classes


def labeled_iterations(kept: Sequence[Rows]) -> Rows:
    """Return the iteration since which each pool row is kept, in this one and in all that follow; -1: none.

    Args:
        kept: `kept_classes` of the iterations 1, 2, …
    """
    since = np.full_like(kept[0], -1) if kept else np.empty(0, dtype=np.int64)
    for iteration, classes in enumerate(kept, start=1):
        since = np.where(classes < 0, -1, np.where(since < 0, iteration, since))
    return since


def termination_condition(kept: Sequence[Rows], pool: int) -> str:
    """Return "all_labeled", "no_change" or "max_iter", see `NoisyStudent`.

    Args:
        kept: `kept_classes` of the iterations 1, 2, …
        pool: images in the pool.
    """
    if pool == 0 or (kept and (kept[-1] >= 0).all()):
        return "all_labeled"
    if len(kept) > 1 and np.array_equal(kept[-1], kept[-2]):
        return "no_change"
    return "max_iter"
