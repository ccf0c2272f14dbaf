"""The images of a run that are worth a look: doubtful ones, suspected labels, and the next ones to label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisystudent.console import Progress
from noisystudent.data.sources import Sources
from noisystudent.errors import require
from noisystudent.report.review import write_page
from noisystudent.review.groups import pool_groups, suspected_labels
from noisystudent.review.labeled import unseen_predictions
from noisystudent.review.opened import open_run
from noisystudent.review.output import page_content, write_csv
from noisystudent.review.pool import pool_images
from noisystudent.runtime import generator

__all__ = ["review"]


def review(
    run: Path,
    out: Path,
    *,
    count: int = 100,
    most: int = 5_000,
    sources: Sources | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[str]:
    """Write the images of a run that are worth a look to a CSV file, and to an HTML page beside it.

    An image is in one group at most. The column `label` has the given label, or is empty for an image of the
    pool; with edited labels the file is what `data.given_labels` takes. Nothing in the run is changed.

    Args:
        run: run directory with a finished model.
        out: CSV file to write; the page has the same name with the suffix .html.
        count: images in each group at most.
        most: images of the pool, and without folds labelled images, that the last model looks at. They are
            drawn at random if there are more.
        sources: images of the run; None: those that its configuration names.
        device: auto, or a torch device.
        progress: receives the progress. None: nothing is shown.

    Returns:
        Lines of text: the number of images in each group, and what is missing.

    Raises:
        InputError: `run` is no run directory with a finished model; images have changed; `out` is its labels.
        RunError: a file of the run is damaged, or an image cannot be read.
    """
    context, model = open_run(run, sources, device, progress or Progress())
    _check_not_given(out, context.config.data.given_labels)
    _, training = context.trainings(model)
    dataset, seed = context.dataset, context.config.seed
    labeled = _drawn(len(dataset.labeled), most, seed, "labeled")
    unseen = unseen_predictions(context, training, labeled)
    groups, notes = [suspected_labels(unseen, dataset.classes, count)], [one.origin for one in unseen]
    rows = _drawn(len(dataset.pool), most, seed, "pool")
    if len(rows):
        pool = pool_images(context, training, rows)
        groups += pool_groups(pool, dataset, model.training.name, count, seed)
        if len(rows) < len(dataset.pool):
            notes.append(f"{len(rows):,} of {len(dataset.pool):,} pool images were drawn at random (--most).")
    else:
        notes.append("The run has no pool.")
    write_csv(context, groups, out)
    write_page(page_content(context, groups, notes, out), out.with_suffix(".html"))
    return [*(f"{group.title}: {len(group.images):,} images" for group in groups), *notes]


def _check_not_given(out: Path, given_labels: Sequence[str]) -> None:
    """Refuse to replace labels of the run."""
    used = [Path(file).resolve() for file in given_labels]
    require(out.resolve() not in used, f"{out} holds labels that the run uses; give another --out")


def _drawn(images: int, most: int, seed: int, name: str) -> NDArray[np.int64]:
    """Ascending rows of at most `most` of some images."""
    if images <= most:
        return np.arange(images)
    return np.sort(generator(seed, f"review/{name}").choice(images, most, replace=False))
