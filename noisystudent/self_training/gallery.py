"""A look into the pool: per class, images from the most to the least confident pseudo-label."""

from __future__ import annotations

import base64
import io
from typing import Any

import duckdb
import numpy as np
from PIL import Image

from noisystudent.data.prepare import Dataset
from noisystudent.records import Selection

_PER_CLASS = 14
_MOST_CLASSES = 100
_MOST_PIXELS = 96


def pictures(dataset: Dataset, selection: Selection, with_truth: bool) -> list[dict[str, Any]]:
    """For each class, up to 14 thumbnails at evenly spaced ranks of confidence, kept or not.

    Returns:
        A row a class: {class, images: [{id, confidence, kept, truth or None, jpeg in base64}]}.
    """
    # (label, row, confidence, kept) at ranks 1 … n, evenly spaced; n ranks give every image of a small class.
    query = """
        WITH ranked AS (
            SELECT label, row, confidence, repeats > 0 AS kept, count(*) OVER (PARTITION BY label) AS n,
                   row_number() OVER (PARTITION BY label ORDER BY confidence DESC, content_hash) - 1 AS rank
            FROM read_parquet($1) WHERE label < $2)
        SELECT label, row, confidence, kept FROM ranked
        WHERE n <= $3 OR (rank * ($3 - 1)) // (n - 1) <> ((rank - 1) * ($3 - 1)) // (n - 1) OR rank = 0
        ORDER BY label, rank"""
    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        found = connection.execute(query, [str(selection.path), _MOST_CLASSES, _PER_CLASS]).fetchall()
    shown: dict[int, list[dict[str, Any]]] = {
        label: [] for label in range(min(len(dataset.classes), _MOST_CLASSES))
    }
    for label, row, confidence, kept in found:
        shown[label].append(_picture(dataset, row, confidence, kept, with_truth))
    return [{"class": dataset.classes[label], "images": images} for label, images in shown.items()]


def _picture(dataset: Dataset, row: int, confidence: float, kept: bool, with_truth: bool) -> dict[str, Any]:
    pool = dataset.pool
    at = np.array([row], dtype=np.int64)
    truth = int(pool.truth[row]) if with_truth else -1
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
