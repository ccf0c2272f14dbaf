"""The rules of selection, and the reassignment of an earlier selection.

A confidence is the exact value of its float32. `paper` compares it with the float64 threshold, and `adaptive`
with exact fractions (see `thresholds`). `official` compares it with k/100, exactly, because float32 x 100 has
no rounding error in float64. Images of equal
confidence are ranked by content hash. Images with the same hash are copies; the first row comes first.
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
from noisystudent.selection.database import database, marks, open_labels, parquet, restrict, write
from noisystudent.selection.decisions import (
    Above,
    Among,
    Decide,
    Mark,
    Official,
    Paper,
    everything,
    first_outside,
    least_agreement,
)
from noisystudent.selection.junk import junk_limit
from noisystudent.selection.ranking import count_classes, images_at
from noisystudent.selection.thresholds import adaptive, fixed


def select(
    labels: PseudoLabels,
    config: SelectionConfig,
    *,
    seed: int,
    out: Path,
    energies: NDArray[np.float32] | None = None,
    memory_limit: str = "2GB",
    threads: int | None = None,
) -> Selection:
    """Decide for each pool image how often a student is trained on it, with the reason.

    The modes, where K is `per_class`, or if that is None the mean number of candidates of the classes with
    candidates:

    - paper (arXiv 1911.04252 §3.1): of the images above the threshold, the K most confident of each predicted
      class. Smaller classes are repeated evenly to exactly K, the most confident images once more.
    - official (the published filter_unlabel.py): each class has its own threshold, a multiple of 0.01, with n
      images at or above it. Each of these has K / n copies, rounded at random. Here the random number is a
      pure function of (seed, content hash).
    - adaptive: as paper, with a threshold for each class, see `thresholds.adaptive`.
    - threshold: every image above the threshold, once.
    - all: every image, once.

    Junk to be dropped, and images above max_confidence, outside pool_fraction or below agreement, are removed
    first; none may be left.

    Args:
        labels: pseudo-labels of the teacher.
        config: fields of `selection`.
        seed: seed of the random rounding in mode official.
        out: Parquet file to write.
        energies: (N,) energies of labelled images for `energy_limit`; None: those beside the labels.
        memory_limit: of DuckDB, which writes larger data to a folder beside `out`.
        threads: of DuckDB. None: one for each core.

    Returns:
        The selection in the file `out`.

    Raises:
        InputError: agreement of one teacher, or no energies.
        RunError: there are no pseudo-labels, they cannot be read, or memory or disk is full.
    """
    limit = junk_limit(labels, config, energies)
    with database(out, memory_limit, threads) as connection:
        open_labels(connection, labels, agreement=config.agreement > 0, junk_limit=limit)
        decide = _rule(connection, config, labels.num_classes, seed)
        write(connection, "labels", out, decide, agreement=config.agreement > 0)
    return Selection(out, labels.num_classes)


def _rule(
    connection: duckdb.DuckDBPyConnection, config: SelectionConfig, num_classes: int, seed: int
) -> Decide:
    limited = config.max_confidence < 1.0 or config.pool_fraction < 1.0 or config.agreement > 0.0
    limited = limited or config.junk == "drop"
    if limited:
        restrict(connection, _condition(config))
    match config.mode:
        case "paper":
            same = np.full(num_classes, fixed(config, num_classes))
            decide: Decide = _paper(connection, config, same)
        case "adaptive":
            decide = _paper(connection, config, adaptive(connection, config.strength, num_classes))
        case "official":
            decide = _official(connection, config, num_classes, seed)
        case "threshold":
            decide = Above(fixed(config, num_classes))
        case "all":
            decide = everything
    junk = config.junk != "drop"
    within = Among(decide, config.max_confidence, config.pool_fraction, config.agreement, junk)
    return within if limited else decide


def _condition(config: SelectionConfig) -> str:
    """SQL condition for the images that `Among` does not exclude."""
    # DuckDB reads a number with an exponent as a double, and one without as a decimal.
    condition = f"confidence::DOUBLE <= {config.max_confidence:.17e}"
    if config.pool_fraction < 1.0:
        bound = "".join(f"\\x{byte:02X}" for byte in first_outside(config.pool_fraction).to_bytes(8))
        condition += f" AND content_hash < '{bound}'::BLOB"
    if config.agreement > 0.0:
        condition += f" AND agreement::DOUBLE >= {least_agreement(config.agreement):.17e}"
    if config.junk == "drop":
        condition += " AND NOT junk"
    return condition


def reassign(
    previous: Selection,
    labels: PseudoLabels,
    out: Path,
    *,
    memory_limit: str = "2GB",
    threads: int | None = None,
) -> Selection:
    """Keep the images and repeats of `previous`, with the labels and confidences of another teacher.

    Images are matched by content hash, so files may have been moved; of copies of an image the n-th gets the
    decision of the n-th. The classes may no longer be balanced.

    Args:
        previous: selection of the iteration before.
        labels: pseudo-labels of the other teacher.
        out: Parquet file to write.
        memory_limit, threads: see `select`.

    Returns:
        The selection in the file `out`.

    Raises:
        InputError: `previous` and `labels` do not have the same images and the same number of classes.
        RunError: see `select`.
    """
    if previous.num_classes != labels.num_classes:
        raise InputError(
            f"{previous.path} has {previous.num_classes} classes, but {labels.path} has {labels.num_classes};"
            " both must have the same classes"
        )
    with database(out, memory_limit, threads) as connection:
        open_labels(connection, labels)
        columns = f"row, content_hash, repeats, reason, {marks(previous.path)} AS junk"
        connection.execute(f"CREATE TEMP VIEW previous AS SELECT {columns} FROM {parquet([previous.path])}")
        copy = "row_number() OVER (PARTITION BY content_hash ORDER BY row) AS copy"  # numbers equal hashes
        connection.execute(
            f"""CREATE TEMP TABLE decided AS
            SELECT now.row, now.content_hash, label, confidence, before.junk, repeats, reason::why AS reason
            FROM (SELECT *, {copy} FROM labels) AS now JOIN (SELECT *, {copy} FROM previous) AS before
            ON now.content_hash = before.content_hash AND now.copy = before.copy"""
        )
        counts = {name: _count(connection, name) for name in ("labels", "previous", "decided")}
        if len(set(counts.values())) > 1:
            raise InputError(
                f"{labels.path} has {counts['labels']} images and {previous.path} has {counts['previous']}, "
                f"of which {counts['decided']} are the same; select again from these labels"
            )
        write(connection, "decided", out)
    return Selection(out, labels.num_classes)


def _count(connection: duckdb.DuckDBPyConnection, relation: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {relation}").fetchall()[0][0])


def _quota(config: SelectionConfig, candidates: list[int]) -> int:
    """K: `per_class`, or the mean of the candidates of classes that have any, half rounded up, at least 1."""
    present = [n for n in candidates if n]
    if config.per_class is not None:
        return config.per_class
    return (2 * sum(present) + len(present)) // (2 * len(present)) if present else 1


def _paper(
    connection: duckdb.DuckDBPyConnection, config: SelectionConfig, thresholds: NDArray[np.float64]
) -> Paper:
    """Compute the marks of the rule `Paper` with a threshold for each class.

    In the order of a class, the decision changes only after the last eligible image and after the last image
    with one repeat more. Only these images are looked up; all others are compared with them.
    """
    counts, num_classes = count_classes(connection, thresholds), len(thresholds)
    # As a fraction, 0.07 of 100 images is exactly 7. In float64 it is 7.000000000000001, and ceil gives 8.
    share = Fraction(1 if config.top_fraction is None else str(config.top_fraction))
    # Eligible images of a class are above the threshold and within the top fraction.
    eligible = {label: min(above, math.ceil(share * images)) for label, images, above in counts}
    ends = {label: n for label, _, above in counts if (n := eligible[label]) < above}
    # `ends` has only the classes in which the top fraction is the stricter limit. In all others the threshold
    # alone decides, and no image has to be looked up.
    base, extra = _copies(config, eligible, num_classes)
    last, more = Mark(num_classes, include_all=True), Mark(num_classes, include_all=False)
    marks = ((last, ends), (more, extra))
    for image in images_at(connection, {item for _, places in marks for item in places.items() if item[1]}):
        for mark, places in marks:
            if places.get(image.label) == image.place:
                mark.put(image.label, image.confidence, image.content_hash, image.row)
    return Paper(thresholds, base, last, more)


def _copies(
    config: SelectionConfig, eligible: dict[int, int], num_classes: int
) -> tuple[NDArray[np.int32], dict[int, int]]:
    """Repeats of the eligible images of each class.

    Returns:
        (num_classes,) repeats that every eligible image of the class has, and label -> number of images, from
        the most confident one on, that have one repeat more.
    """
    quota = _quota(config, list(eligible.values()))
    base, extra = np.ones(num_classes, np.int32), dict.fromkeys(eligible, 0)
    for label, n in eligible.items():
        if n > quota:  # none by default, and one more for the first `quota` images
            base[label], extra[label] = 0, quota
        elif n and config.duplicate:
            base[label], extra[label] = divmod(quota, n)
    return base, extra


def _official(
    connection: duckdb.DuckDBPyConnection, config: SelectionConfig, num_classes: int, seed: int
) -> Official:
    """Compute thresholds and copies of the rule `Official`.

    The threshold of a class is the highest k/100 with at least K images at or above it.
    """
    lowest = round(config.threshold * 100)
    # Confidences are counted in bins of 0.01, so that no image is read one by one.
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
        # Without duplicates an image has at most one copy. Fractions keep the probability exact.
        copies = min(Fraction(quota, n), Fraction(quota if config.duplicate else 1))
        cut[label], base[label] = lowest_bin, math.floor(copies)
        chance[label] = math.floor((copies - math.floor(copies)) * 2**64)
    return Official(lowest, cut, base, chance, torch_seed(seed, "selection"))


def _cuts(bins: list[tuple[int, int, int]], quota: int) -> dict[int, tuple[int, int]]:
    """(label, bin, count) rows by falling bin -> label -> (threshold in hundredths, images at or above it).

    A class with fewer than `quota` images gets its lowest bin with images, which keeps all of them.
    """
    cuts: dict[int, tuple[int, int]] = {}
    for label, bin_, count in bins:
        _, above = cuts.get(label, (bin_, 0))
        if above < quota:
            cuts[label] = (bin_, above + count)
    return cuts
