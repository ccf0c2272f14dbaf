"""The groups as a CSV file, and as the content of a page with thumbnails."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from noisystudent.data.sources.given import file_of, key_of
from noisystudent.review.groups import Candidate, Group
from noisystudent.run.files import atomic, csv_lines, read_json
from noisystudent.self_training.context import Context
from noisystudent.self_training.gallery import thumbnail

HEADER = ("key", "filepath", "label", "reason", "set", "predicted", "confidence", "score", "detail")
"""Columns of the file; `filepath` is empty for an image that is not a file of its own."""

_SHOWN = 200  # images of a group on the page, which keeps it at a few MB


def write_csv(context: Context, groups: Sequence[Group], out: Path) -> None:
    """Write the images of all groups.

    Raises:
        RunError: the file cannot be written.
    """
    with atomic(out) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.writelines(csv_lines(chain([HEADER], _rows(context, groups))))


def _rows(context: Context, groups: Sequence[Group]) -> Iterator[tuple[object, ...]]:
    """Rows of the file."""
    for group in groups:
        for one, (key, path) in zip(group.images, _places(context, group.images), strict=True):
            numbers = (f"{one.confidence:.4f}", f"{one.score:.4f}")
            yield key, path, one.label, group.reason, one.images.name, one.predicted, *numbers, one.detail


def page_content(
    context: Context, groups: Sequence[Group], notes: Sequence[str], out: Path
) -> Mapping[str, Any]:
    """Return what the page shows, with the thumbnails of the first images of each group."""
    given = ("--given-labels", *context.config.data.given_labels, str(out))
    return {
        "name": context.run.path.resolve().name,
        "command": shlex.join(("noisystudent", "run", "--out", str(context.run.path), *given)),
        "csv": out.name,
        "notes": list(notes),
        "groups": [
            {
                "reason": group.reason,
                "title": group.title,
                "note": group.note,
                "total": len(group.images),
                "images": [
                    {
                        **thumbnail(one.images, one.row),
                        "label": one.label,
                        "predicted": one.predicted,
                        "confidence": one.confidence,
                        "detail": one.detail,
                    }
                    for one in group.images[:_SHOWN]
                ],
            }
            for group in groups
        ],
    }


def _places(context: Context, group: Sequence[Candidate]) -> list[tuple[str, str]]:
    """(key, path) of each image, as `data.given_labels` takes them."""
    data, sets = context.config.data, read_json(context.run.data.dataset)["sets"]
    specs = {"labeled": data.labeled, "val": data.val, "test": data.test, "pool": data.unlabeled}
    places = []
    for one in group:
        (image_id,) = one.images.ids(np.array([one.row]))
        key = key_of(sets[one.images.name]["scan"], image_id)
        places.append((key, file_of(specs, key)))
    return places
