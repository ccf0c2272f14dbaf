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
import numpy as np
from numpy.typing import NDArray

from noisystudent.config import SelectionConfig
from noisystudent.errors import InputError
from noisystudent.records import PseudoLabels, Selection
from noisystudent.runtime import torch_seed
from noisystudent.selection.database import database, open_labels, parquet, restrict, write
from noisystudent.selection.decisions import (
    Above,
    Among,
    Decide,
    Mark,
    Official,
    Paper,
    everything,
    first_unseen,
)
from noisystudent.selection.ranking import count_classes, images_at


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
    threshold: every image above the threshold once. all: every image once.
    Images above max_confidence, or outside pool_fraction, are out before any of this.
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
        decide = _rule(connection, config, labels.num_classes, seed)
        write(connection, "labels", out, decide)
    return Selection(out, labels.num_classes)


def _rule(
    connection: duckdb.DuckDBPyConnection, config: SelectionConfig, num_classes: int, seed: int
) -> Decide:
    limited = config.max_confidence < 1.0 or config.pool_fraction < 1.0
    if limited:
        restrict(connection, _condition(config))
    match config.mode:
        case "paper":
            decide: Decide = _paper(connection, config, num_classes)
        case "official":
            decide = _official(connection, config, num_classes, seed)
        case "threshold":
            decide = Above(config.threshold)
        case "all":
            decide = everything
    return Among(decide, config.max_confidence, config.pool_fraction) if limited else decide


def _condition(config: SelectionConfig) -> str:
    """What `Among` lets in, in SQL; with an exponent DuckDB reads a double, not a decimal."""
    said = f"confidence::DOUBLE <= {config.max_confidence:.17e}"
    if config.pool_fraction < 1.0:
        bound = "".join(f"\\x{byte:02X}" for byte in first_unseen(config.pool_fraction).to_bytes(8))
        said += f" AND content_hash < '{bound}'::BLOB"
    return said


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


def _paper(connection: duckdb.DuckDBPyConnection, config: SelectionConfig, num_classes: int) -> Paper:
    """Strict top K: per class one or two images mark where the decision changes; all compare with them."""
    counts = count_classes(connection, config.threshold)
    share = Fraction(1 if config.top_fraction is None else str(config.top_fraction))
    eligible = {label: min(above, math.ceil(share * images)) for label, images, above in counts}
    ends = {label: n for label, _, above in counts if (n := eligible[label]) < above}
    base, extra = _copies(config, eligible, num_classes)
    last, more = Mark(num_classes, everyone=True), Mark(num_classes, everyone=False)
    places = {place for asked in (ends, extra) for place in asked.items() if place[1]}
    for image in images_at(connection, places):
        for mark, asked in ((last, ends), (more, extra)):
            if asked.get(image.label) == image.place:
                mark.put(image.label, image.confidence, image.content_hash, image.row)
    return Paper(config.threshold, base, last, more)


def _copies(
    config: SelectionConfig, eligible: dict[int, int], num_classes: int
) -> tuple[NDArray[np.int32], dict[int, int]]:
    """(num_classes,) how often an eligible image is trained on, and how many of its class once more."""
    quota = _quota(config, list(eligible.values()))
    base, extra = np.ones(num_classes, np.int32), dict.fromkeys(eligible, 0)
    for label, n in eligible.items():
        if n > quota:
            base[label], extra[label] = 0, quota
        elif n and config.duplicate:
            base[label], extra[label] = divmod(quota, n)
    return base, extra


def _official(
    connection: duckdb.DuckDBPyConnection, config: SelectionConfig, num_classes: int, seed: int
) -> Official:
    """A class's threshold is the highest k/100 with K images at or above it; the rounding is seeded."""
    lowest = round(config.threshold * 100)
    bins = connection.execute(
        f"""SELECT label, floor(confidence::DOUBLE * 100)::INTEGER AS bin, count(*)
        FROM candidates WHERE bin >= {lowest} GROUP BY label, bin ORDER BY label, bin DESC"""
    ).fetchall()
    candidates: dict[int, int] = {}
    for label, _, count in bins:
        candidates[label] = candidates.get(label, 0) + count
    quota = _quota(config, list(candidates.values()))
    cut = np.full(num_classes, np.iinfo(np.int32).max, np.int32)
    base, chance = np.zeros(num_classes, np.int32), np.zeros(num_classes, np.uint64)
    for label, (lowest_bin, n) in _cuts(bins, quota).items():
        copies = min(Fraction(quota, n), Fraction(quota if config.duplicate else 1))
        cut[label], base[label] = lowest_bin, math.floor(copies)
        chance[label] = math.floor((copies - math.floor(copies)) * 2**64)
    return Official(lowest, cut, base, chance, torch_seed(seed, "selection"))


def _cuts(bins: list[tuple[int, int, int]], quota: int) -> dict[int, tuple[int, int]]:
    """(label, bin, count) by falling bin -> {label: (threshold in hundredths, images at or above it)}."""
    cuts: dict[int, tuple[int, int]] = {}
    for label, bin_, count in bins:
        _, above = cuts.get(label, (bin_, 0))
        if above < quota:
            cuts[label] = (bin_, above + count)
    return cuts  # short of the quota: its lowest occupied bin, which keeps the same images as the lowest bin
