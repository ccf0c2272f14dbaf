"""Thumbnails of pool images for the report: some of each class, from high to low confidence."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from noisystudent.data.prepare import Dataset
from noisystudent.records import Selection
from noisystudent.selection.database import database

# These bounds keep gallery.json and the report at a few MB: at most 1,400 thumbnails.
_PER_CLASS = 14
_MOST_CLASSES = 100
_MOST_PIXELS = 96  # side of a thumbnail


def thumbnails(dataset: Dataset, selection: Selection, with_truth: bool) -> list[dict[str, Any]]:
    """Return up to 14 thumbnails for each of the first 100 classes, at evenly spaced ranks of confidence.

    Images that were not selected are included.

    Args:
        dataset: its pool and classes are used.
        selection: pseudo-label, confidence and repeats of each pool image.
        with_truth: include the true class of each image.

    Returns:
        One dict per class: {"class": name, "images": [{"id", "confidence", "kept", "truth", "jpeg"}]}. The
            truth is a class name or None, the JPEG is in base64.
    """
    # Rows (label, pool row, confidence, kept). A rank is taken where rank * 13 / (n - 1) reaches the next
    # whole number; a class of at most 14 images gives all. content_hash orders equal confidences.
    query = """
        WITH ranked AS (
            SELECT label, row, confidence, repeats > 0 AS kept, count(*) OVER (PARTITION BY label) AS n,
                   row_number() OVER (PARTITION BY label ORDER BY confidence DESC, content_hash) - 1 AS rank
            FROM read_parquet($1) WHERE label < $2)
        SELECT label, row, confidence, kept FROM ranked
        WHERE n <= $3 OR (rank * ($3 - 1)) // (n - 1) <> ((rank - 1) * ($3 - 1)) // (n - 1) OR rank = 0
        ORDER BY label, rank"""
    with database(selection.path, "2GB", None) as connection:
        rows = connection.execute(query, [str(selection.path), _MOST_CLASSES, _PER_CLASS]).fetchall()
    thumbnails: dict[int, list[dict[str, Any]]] = {
        label: [] for label in range(min(len(dataset.classes), _MOST_CLASSES))
    }
    for label, row, confidence, kept in rows:
        thumbnails[label].append(_thumbnail(dataset, row, confidence, kept, with_truth))
    return [{"class": dataset.classes[label], "images": images} for label, images in thumbnails.items()]


def _thumbnail(dataset: Dataset, row: int, confidence: float, kept: bool, with_truth: bool) -> dict[str, Any]:
    pool = dataset.pool
    at = np.array([row], dtype=np.int64)
    truth = int(pool.truth[row]) if with_truth else -1
    # Never enlarged. `fetch` with no box gives the clean centre view.
    side = min(int(pool.view_sizes(at).min()), _MOST_PIXELS)
    pixels = pool.fetch(at, side, None)[0].permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=85)
    return {
        "id": pool.ids(at)[0],
        "confidence": float(confidence),
        "kept": bool(kept),
        "truth": dataset.classes[truth] if truth >= 0 else None,
        "jpeg": base64.b64encode(buffer.getvalue()).decode("ascii"),
    }
