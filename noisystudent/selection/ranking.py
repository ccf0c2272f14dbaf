"""Which image stands at a place of its class: found by counting, so that the pool is never sorted.

The order of a class is by falling confidence, then content hash, then row.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import NamedTuple

import duckdb
import pyarrow as pa

# The order of a class, read ever more closely: the buckets of each key divide those of the key before.
_KEYS = (
    "floor(confidence * -64)",
    "floor(confidence * -4096)",
    "-confidence",
    "row(-confidence, content_hash[1:1])",
)
FEW = 1 << 22
"""So many rows are sorted at once; they take some 300 MB."""

_COUNT = """
CREATE OR REPLACE TEMP TABLE counted AS
SELECT label, {within} AS within, {bucket} AS bucket, count(*) AS n
"""
_COUNT_ALL = ", count(*) FILTER (confidence::DOUBLE > {threshold}) AS above FROM candidates GROUP BY ALL"
_COUNT_ASKED = "FROM candidates WHERE (label, {within}) IN (SELECT (label, bucket) FROM asked) GROUP BY ALL"

# a place is the nth in its bucket, of `rows`
_ASK = """
CREATE OR REPLACE TEMP TABLE asked AS
WITH summed AS (
    SELECT *, sum(n) OVER (PARTITION BY label, within ORDER BY bucket) AS upto FROM counted
)
SELECT label, place, summed.bucket, nth - (upto - n) AS nth, n AS rows
FROM summed JOIN asked USING (label) WHERE within = asked.bucket AND nth > upto - n AND nth <= upto
"""

_FIND = """
SELECT label, place, confidence, content_hash, row FROM (
    SELECT chosen.label, place, confidence, content_hash, row, nth, row_number() OVER (
        PARTITION BY chosen.label, place ORDER BY confidence DESC, content_hash, row) AS n
    FROM candidates AS chosen JOIN asked ON chosen.label = asked.label AND {key} = bucket
) WHERE n = nth
"""


class Placed(NamedTuple):
    """The image at one place, from 1, of a class."""

    label: int
    place: int
    confidence: float
    content_hash: bytes
    row: int


def count_classes(connection: duckdb.DuckDBPyConnection, threshold: float) -> list[tuple[int, int, int]]:
    """(label, images, images of a confidence above the threshold) of every class that has any, by label."""
    exact = f"{threshold:.17e}"  # with an exponent DuckDB reads a double, not a decimal
    counts = _COUNT.format(within=0, bucket=_KEYS[0]) + _COUNT_ALL.format(threshold=exact)
    connection.execute(counts)
    found: list[tuple[int, int, int]] = connection.execute(
        "SELECT label, sum(n)::BIGINT, sum(above)::BIGINT FROM counted GROUP BY label ORDER BY label"
    ).fetchall()
    return found


def images_at(connection: duckdb.DuckDBPyConnection, places: set[tuple[int, int]]) -> list[Placed]:
    """The images at (label, place), once `count_classes` has counted.

    Only buckets that hold one of the places are looked into, and they are sorted only when that is little.
    """
    labels, numbers = zip(*sorted(places), strict=True) if places else ((), ())
    asked = pa.table({"label": pa.array(labels, pa.int32()), "place": pa.array(numbers, pa.int64())})
    connection.register("places", asked)
    connection.execute("CREATE TEMP TABLE asked AS SELECT *, 0 AS bucket, place AS nth FROM places")
    for key, finer in zip_longest(_KEYS, _KEYS[1:]):
        connection.execute(_ASK)
        rows = connection.execute("SELECT coalesce(sum(rows), 0) FROM asked").fetchall()[0][0]
        if rows <= FEW or finer is None:
            break
        connection.execute(_COUNT.format(within=key, bucket=finer) + _COUNT_ASKED.format(within=key))
    return [Placed(*image) for image in connection.execute(_FIND.format(key=key)).fetchall()]
