"""Thumbnails for the report: pool images of each class, and images that the last student gets wrong."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
from PIL import Image
from torch import Tensor

from noisystudent.data.imageset import ImageSet
from noisystudent.data.prepare import Dataset
from noisystudent.metrics import classification
from noisystudent.metrics.classification import Floats, Ints
from noisystudent.pseudo_label import has_agreement
from noisystudent.records import PseudoLabels, Selection
from noisystudent.run.rundir import LabelsDir
from noisystudent.selection.database import database, marks, parquet

# These bounds keep gallery.json and the report at a few MB: at most 1,400 thumbnails, and 100 mistakes.
_PER_CLASS = 14
_MOST_CLASSES = 100
_MOST_MISTAKES = 100
_MOST_PIXELS = 96  # side of a thumbnail


def thumbnails(
    dataset: Dataset, labels: PseudoLabels, selection: Selection, with_truth: bool
) -> list[dict[str, Any]]:
    """Return up to 14 thumbnails for each of the first 100 classes, at evenly spaced ranks of confidence.

    Images that were not selected are included.

    Args:
        dataset: its pool and classes are used.
        labels: agreement of the teachers on each pool image, if there were several.
        selection: pseudo-label, confidence and decision of each pool image.
        with_truth: include the true class of each image.

    Returns:
        One dict per class: {"class": name, "images": [{"id", "confidence", "kept", "reason", "junk",
            "agreement", "truth", "jpeg"}]}. The truth is a class name or None, the agreement a share or None,
            the JPEG is in base64.
    """
    # A rank is taken where rank * 13 / (n - 1) reaches the next whole number; a class of at most 14 images
    # gives all. content_hash orders equal confidences.
    junk = marks(selection.path)
    query = f"""
        WITH ranked AS (
            SELECT label, row, confidence, reason, {junk} AS junk, count(*) OVER (PARTITION BY label) AS n,
                   row_number() OVER (PARTITION BY label ORDER BY confidence DESC, content_hash) - 1 AS rank
            FROM read_parquet($1) WHERE label < $2)
        SELECT label, row, confidence, reason, junk FROM ranked
        WHERE n <= $3 OR (rank * ($3 - 1)) // (n - 1) <> ((rank - 1) * ($3 - 1)) // (n - 1) OR rank = 0
        ORDER BY label, rank"""
    with database(selection.path, "2GB", None) as connection:
        rows = connection.execute(query, [str(selection.path), _MOST_CLASSES, _PER_CLASS]).fetchall()
        agreement = _agreement(connection, labels, [row for _, row, *_ in rows])
    shown: dict[int, list[dict[str, Any]]] = {
        label: [] for label in range(min(len(dataset.classes), _MOST_CLASSES))
    }
    for label, row, confidence, reason, junk in rows:
        truth = int(dataset.pool.truth[row]) if with_truth else -1
        image = {
            **thumbnail(dataset.pool, row),
            "confidence": float(confidence),
            "kept": reason == "kept",
            "reason": reason,
            "junk": junk,
            "agreement": agreement.get(row),
            "truth": dataset.classes[truth] if truth >= 0 else None,
        }
        shown[label].append(image)
    return [{"class": dataset.classes[label], "images": images} for label, images in shown.items()]


def _agreement(
    connection: duckdb.DuckDBPyConnection, labels: PseudoLabels, rows: list[int]
) -> dict[int, float]:
    """Pool row -> share of the teachers that predict its label; empty if there is one teacher."""
    if not has_agreement(labels):
        return {}
    parts = parquet(LabelsDir(labels.path).parts())
    query = f"SELECT row, agreement FROM {parts} WHERE row IN (SELECT unnest($1))"
    return dict(connection.execute(query, [rows]).fetchall())


def mistakes(
    images: ImageSet, labels: Ints, probs: Mapping[str, Floats], classes: Sequence[str]
) -> dict[str, Any]:
    """Return thumbnails of the images that the student gets wrong, the most confident mistakes first.

    Args:
        images: N images with labels.
        labels: (N,) their labels.
        probs: role -> (N, K) probabilities; one role is student.
        classes: K names.

    Returns:
        {"total": number of mistakes, "images": [{"id", "jpeg", "truth", "predicted": {role: [class,
            confidence]}}]}, at most 100 images.
    """
    wrong = np.flatnonzero(~classification.correct(probs["student"], labels))
    first = np.argsort(-probs["student"][wrong].max(axis=1), kind="stable")[:_MOST_MISTAKES]
    shown = []
    for row in wrong[first].tolist():
        predicted = {
            role: [classes[int(each[row].argmax())], float(each[row].max())] for role, each in probs.items()
        }
        image = {**thumbnail(images, row), "truth": classes[int(labels[row])], "predicted": predicted}
        shown.append(image)
    return {"total": len(wrong), "images": shown}


def thumbnail(images: ImageSet, row: int) -> dict[str, str]:
    """{"id", "jpeg"} of one image: its id, and a small JPEG in base64."""
    at = np.array([row], dtype=np.int64)
    # Never enlarged. `fetch` with no box gives the clean centre view.
    side = min(int(images.view_sizes(at).min()), _MOST_PIXELS)
    return {"id": images.ids(at)[0], "jpeg": encoded(images.fetch(at, side, None)[0])}


def encoded(image: Tensor, side: int = _MOST_PIXELS) -> str:
    """Return an image (3, S, S) uint8 as a JPEG in base64, with a side of at most `side` pixels."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
