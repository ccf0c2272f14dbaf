"""The rules of selection: the paper's, the published code's, all, and earlier images under new labels.

A confidence is the real number its float32 stands for. `paper` compares it with the float64 threshold;
`official` with k/100, exactly, since float32 x 100 has no rounding error in float64. Images of equal
confidence are ranked by content hash; those equal in that too are the same image, whose first row leads.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import duckdb
import pyarrow as pa

from noisystudent.config import SelectionConfig
from noisystudent.errors import InputError
from noisystudent.records import PseudoLabels, Selection
from noisystudent.selection.database import database, open_labels, parquet, write


def select(
    labels: PseudoLabels,
    config: SelectionConfig,
    *,
    seed: int,
    out: Path,
    memory_limit: str = "2GB",
    threads: int | None = None,
) -> Selection:
    """Decide how often each pool image is trained on, and say why; nothing kept is not an error.

    paper: confidence above the threshold; per predicted class the K most confident; smaller classes repeated
    evenly to exactly K, the most confident once more than the others (arXiv 1911.04252 §3.1).
    official: the published filter_unlabel.py: a threshold in steps of 0.01 per class, above which every image
    has K / n copies, stochastically rounded; here the draw is a pure function of (seed, content hash).
    all: every image once.
    With per_class None, K is the mean number of candidates of the classes that have any.

    Args:
        labels: what the teacher said.
        config: mode, threshold, per_class, duplicate, top_fraction (paper mode only).
        seed: of the stochastic rounding.
        out: the Parquet file to write.
        memory_limit: of DuckDB; it spills beside `out`.
        threads: of DuckDB. None: one a core.

    Raises:
        InputError: top_fraction in another mode than paper.
        RunError: no pseudo-labels, or they cannot be read; memory or disk is full.
    """
    if config.top_fraction is not None and config.mode != "paper":
        raise InputError(
            f"selection.top_fraction is {config.top_fraction} in mode {config.mode}; it needs mode paper"
        )
    with database(out, memory_limit, threads) as connection:
        open_labels(connection, labels)
        if config.mode == "paper":
            decided = _paper(connection, config, labels.num_classes)
        elif config.mode == "official":
            decided = _official(connection, config, labels.num_classes, seed)
        else:
            decided = "(SELECT *, 1 AS repeats, 'kept'::why AS reason FROM labels)"
        write(connection, decided, out)
    return Selection(out, labels.num_classes)


def reassign(
    previous: Selection,
    labels: PseudoLabels,
    out: Path,
    *,
    memory_limit: str = "2GB",
    threads: int | None = None,
) -> Selection:
    """Keep the images and repeats of `previous`, under the labels and confidences of another teacher.

    Images are recognised by content hash, so a pool whose files moved still fits; of several copies of one
    image the first keeps the decisions of the first. Classes need not stay balanced.

    Raises:
        InputError: the two are not of the same images or classes.
    """
    if previous.num_classes != labels.num_classes:
        raise InputError(
            f"{previous.path} has {previous.num_classes} classes and {labels.path} has {labels.num_classes}; "
            "give labels of the same classes"
        )
    with database(out, memory_limit, threads) as connection:
        open_labels(connection, labels)
        connection.execute(f"CREATE TEMP VIEW previous AS SELECT * FROM {parquet([previous.path])}")
        copy = "row_number() OVER (PARTITION BY content_hash ORDER BY row) AS copy"
        connection.execute(
            f"""CREATE TEMP TABLE decided AS
            SELECT now.row, now.content_hash, now.label, now.confidence, repeats, reason::why AS reason
            FROM (SELECT *, {copy} FROM labels) AS now
            JOIN (SELECT content_hash, repeats, reason, {copy} FROM previous) AS before
            ON now.content_hash = before.content_hash AND now.copy = before.copy"""
        )
        counts = {name: _count(connection, name) for name in ("labels", "previous", "decided")}
        if len(set(counts.values())) > 1:
            raise InputError(
                f"{labels.path} has {counts['labels']} images and {previous.path} {counts['previous']}, "
                f"of which {counts['decided']} are the same; select again, from these labels"
            )
        write(connection, "decided", out)
    return Selection(out, labels.num_classes)


def _count(connection: duckdb.DuckDBPyConnection, relation: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {relation}").fetchall()[0][0])


def _quota(config: SelectionConfig, candidates: list[int]) -> int:
    """K: as configured, or the mean of the classes that have candidates, halves rounded up, at least 1."""
    present = [n for n in candidates if n]
    if config.per_class is not None:
        return config.per_class
    return (2 * sum(present) + len(present)) // (2 * len(present)) if present else 1


def _paper(connection: duckdb.DuckDBPyConnection, config: SelectionConfig, num_classes: int) -> str:
    """Strict top K: per class one or two images mark where the decision changes; all compare with them."""
    threshold = f"{config.threshold:.17e}"  # with an exponent DuckDB reads a double, not a decimal
    counts = connection.execute(
        f"""SELECT label, count(*), count(*) FILTER (confidence::DOUBLE > {threshold}) AS above
        FROM labels GROUP BY label ORDER BY label"""
    ).fetchall()
    share = Fraction(1 if config.top_fraction is None else str(config.top_fraction))
    eligible = [min(above, math.ceil(share * predicted)) for _, predicted, above in counts]
    quota = _quota(config, eligible)
    # an eligible image is trained on `base` times, and once more if among the first `extra` of its class
    base = [0 if n > quota else quota // n if config.duplicate and n else 1 for n in eligible]
    extra = [quota if n > quota else quota % n if config.duplicate and n else 0 for n in eligible]
    table = {
        "label": pa.array([label for label, _, _ in counts], pa.int32()),
        "above": pa.array([above for _, _, above in counts], pa.int64()),
        "eligible": pa.array(eligible, pa.int64()),
        "base": pa.array(base, pa.int32()),
        "extra": pa.array(extra, pa.int64()),
    }
    connection.register("classes", pa.table(table))
    connection.execute(_MARKS.format(threshold=threshold))
    _index_rules(connection, num_classes)
    return _PAPER.format(threshold=threshold)


# The window sees two narrow columns and no content hash; only images that tie with a mark are ordered by it.
_MARKS = """
CREATE TEMP TABLE marks AS
WITH asked AS (
    SELECT label, eligible AS place FROM classes WHERE eligible < above
    UNION SELECT label, extra FROM classes WHERE extra > 0
), ranked AS (
    SELECT label, confidence, row_number() OVER ranking AS place, rank() OVER ranking AS first_tied
    FROM labels WHERE confidence::DOUBLE > {threshold}
    WINDOW ranking AS (PARTITION BY label ORDER BY confidence DESC)
), level AS (
    SELECT label, place, confidence, place - first_tied + 1 AS nth FROM ranked JOIN asked USING (label, place)
), tied AS (
    SELECT label, place, confidence, nth, content_hash, row,
        row_number() OVER (PARTITION BY label, place ORDER BY content_hash, row) AS n
    FROM labels JOIN level USING (label, confidence)
)
SELECT label, place, confidence, content_hash, row FROM tied WHERE n = nth;

CREATE TEMP TABLE rules AS
SELECT classes.label, base,
    last.confidence AS last_confidence, last.content_hash AS last_hash, last.row AS last_row,
    more.confidence AS more_confidence, more.content_hash AS more_hash, more.row AS more_row
FROM classes
LEFT JOIN marks AS last ON last.label = classes.label AND last.place = eligible AND eligible < above
LEFT JOIN marks AS more ON more.label = classes.label AND more.place = extra
"""

_UP_TO = """(confidence > rule.{mark}_confidence OR confidence = rule.{mark}_confidence
    AND (content_hash < rule.{mark}_hash OR content_hash = rule.{mark}_hash AND row <= rule.{mark}_row))"""

# a join would not keep the rows in order
_RULED = "(SELECT *, getvariable('rules')[label + 1] AS rule FROM labels)"


def _index_rules(connection: duckdb.DuckDBPyConnection, num_classes: int) -> None:
    """Turn the table `rules` into a variable: a list of its rows, the one of class k at k + 1, or null."""
    connection.execute(
        f"""SET VARIABLE rules = (SELECT list(rules ORDER BY number)
        FROM range({num_classes}) AS classes(number) LEFT JOIN rules ON rules.label = number)"""
    )


# No mark `last`: all above the threshold are eligible. No mark `more`: none is trained on once more.
_PAPER = f"""(
SELECT row, content_hash, label, confidence,
    CASE WHEN above AND allowed THEN base + again ELSE 0 END AS repeats,
    CASE WHEN NOT above THEN 'below_threshold'::why WHEN NOT allowed THEN 'below_top_fraction'::why
        WHEN base + again = 0 THEN 'over_quota'::why ELSE 'kept'::why END AS reason
FROM (
    SELECT row, content_hash, label, confidence, rule.base AS base,
        confidence::DOUBLE > {{threshold}} AS above,
        coalesce({_UP_TO.format(mark="last")}, true) AS allowed,
        coalesce({_UP_TO.format(mark="more")}, false)::INTEGER AS again
    FROM {_RULED}
))"""


def _official(
    connection: duckdb.DuckDBPyConnection, config: SelectionConfig, num_classes: int, seed: int
) -> str:
    """A class's threshold is the highest k/100 with K images at or above it; the rounding is seeded."""
    lowest = round(config.threshold * 100)
    bins = connection.execute(
        f"""SELECT label, floor(confidence::DOUBLE * 100)::INTEGER AS bin, count(*)
        FROM labels WHERE bin >= {lowest} GROUP BY label, bin ORDER BY label, bin DESC"""
    ).fetchall()
    candidates: dict[int, int] = {}
    for label, _, count in bins:
        candidates[label] = candidates.get(label, 0) + count
    quota = _quota(config, list(candidates.values()))
    cuts = _cuts(bins, quota)
    copies = {
        label: min(Fraction(quota, n), Fraction(quota if config.duplicate else 1))
        for label, (_, n) in cuts.items()
    }
    chances = [math.floor((c - math.floor(c)) * 2**64) for c in copies.values()]
    table = {
        "label": pa.array(cuts, pa.int32()),
        "cut": pa.array([cut for cut, _ in cuts.values()], pa.int32()),
        "base": pa.array([math.floor(c) for c in copies.values()], pa.int32()),
        "chance": pa.array(chances, pa.uint64()),
    }
    connection.register("rules", pa.table(table))
    _index_rules(connection, num_classes)
    return _OFFICIAL.format(lowest=lowest, seed=seed)


def _cuts(bins: list[tuple[int, int, int]], quota: int) -> dict[int, tuple[int, int]]:
    """(label, bin, count) by falling bin -> {label: (threshold in hundredths, images at or above it)}."""
    cuts: dict[int, tuple[int, int]] = {}
    for label, bin_, count in bins:
        _, above = cuts.get(label, (bin_, 0))
        if above < quota:
            cuts[label] = (bin_, above + count)
    return cuts  # short of the quota: its lowest occupied bin, which keeps the same images as the lowest bin


# md5 is the uniform draw: its first 8 bytes, little-endian, against the chance in units of 2^-64
_OFFICIAL = f"""(
SELECT row, content_hash, label, confidence, repeats, CASE WHEN repeats > 0 THEN 'kept'::why
    WHEN bin >= {{lowest}} THEN 'over_quota'::why ELSE 'below_threshold'::why END AS reason
FROM (
    SELECT row, content_hash, label, confidence, floor(confidence::DOUBLE * 100)::INTEGER AS bin,
        CASE WHEN rule.cut IS NULL OR bin < rule.cut THEN 0 WHEN rule.chance = 0 THEN rule.base
            ELSE rule.base
                + (md5_number_upper(content_hash || encode(':{{seed}}')) < rule.chance)::INTEGER
        END AS repeats
    FROM {_RULED}
))"""
