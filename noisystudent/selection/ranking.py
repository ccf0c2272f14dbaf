"""Find the image at a given place of its class by counting, without sorting the pool.

The images of a class are ordered by falling confidence, then content hash, then row.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# SQL keys of growing precision, all in the order of a class: each bucket of a key lies within one bucket of
# the key before. The last key adds the first byte of the hash; DuckDB's slices count from 1.
_KEYS = (
    "floor(confidence * -64)",
    "floor(confidence * -4096)",
    "-confidence",
    "row(-confidence, content_hash[1:1])",
)
FEW = 1 << 22
"""Largest number of rows that are sorted at once, in about 300 MB."""

_COUNT = """
CREATE OR REPLACE TEMP TABLE counted AS
SELECT label, {within} AS within, {bucket} AS bucket, count(*) AS n
"""
_COUNT_ALL = """, count(*) FILTER (confidence::DOUBLE > threshold) AS above
FROM candidates JOIN thresholds USING (label) GROUP BY ALL"""
_COUNT_REQUESTED = (
    "FROM candidates WHERE (label, {within}) IN (SELECT (label, bucket) FROM requested) GROUP BY ALL"
)

# For each requested place the finer bucket that contains it: the place is the `nth` of its `rows` images.
_REFINE = """
CREATE OR REPLACE TEMP TABLE requested AS
WITH summed AS (
    SELECT *, sum(n) OVER (PARTITION BY label, within ORDER BY bucket) AS upto FROM counted
)
SELECT label, place, summed.bucket, nth - (upto - n) AS nth, n AS rows
FROM summed JOIN requested USING (label) WHERE within = requested.bucket AND nth > upto - n AND nth <= upto
"""

_FIND = """
SELECT label, place, confidence, content_hash, row FROM (
    SELECT chosen.label, place, confidence, content_hash, row, nth, row_number() OVER (
        PARTITION BY chosen.label, place ORDER BY confidence DESC, content_hash, row) AS n
    FROM candidates AS chosen JOIN requested ON chosen.label = requested.label AND {key} = bucket
) WHERE n = nth
"""


class Placed(NamedTuple):
    """The image at one place of a class; places count from 1."""

    label: int
    place: int
    confidence: float
    content_hash: bytes
    row: int


def count_classes(
    connection: duckdb.DuckDBPyConnection, thresholds: NDArray[np.float64]
) -> list[tuple[int, int, int]]:
    """Count the candidates of each class, and in coarse buckets of confidence, for `images_at`.

    Args:
        connection: connection from `database`.
        thresholds: (K,) threshold of each class.

    Returns:
        (label, images, images with a confidence above the threshold) of each class with images, by label.
    """
    table = pa.table({"label": np.arange(len(thresholds), dtype=np.int32), "threshold": thresholds})
    connection.register("thresholds", table)
    connection.execute(_COUNT.format(within=0, bucket=_KEYS[0]) + _COUNT_ALL)
    counts: list[tuple[int, int, int]] = connection.execute(
        "SELECT label, sum(n)::BIGINT, sum(above)::BIGINT FROM counted GROUP BY label ORDER BY label"
    ).fetchall()
    return counts


def images_at(connection: duckdb.DuckDBPyConnection, places: set[tuple[int, int]]) -> list[Placed]:
    """The images at some places, given as (label, place). `count_classes` must have been called before.

    The buckets that contain a place are divided into finer buckets until they have at most `FEW` rows in all.
    Only these rows are sorted.
    """
    labels, numbers = zip(*sorted(places), strict=True) if places else ((), ())
    table = pa.table({"label": pa.array(labels, pa.int32()), "place": pa.array(numbers, pa.int64())})
    connection.register("places", table)
    connection.execute("CREATE TEMP TABLE requested AS SELECT *, 0 AS bucket, place AS nth FROM places")
    for key, finer in zip_longest(_KEYS, _KEYS[1:]):
        connection.execute(_REFINE)
        rows = connection.execute("SELECT coalesce(sum(rows), 0) FROM requested").fetchall()[0][0]
        if rows <= FEW or finer is None:
            break
        connection.execute(_COUNT.format(within=key, bucket=finer) + _COUNT_REQUESTED.format(within=key))
    return [Placed(*image) for image in connection.execute(_FIND.format(key=key)).fetchall()]
