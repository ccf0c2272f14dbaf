"""Near copies of val and test images in the pool and the labelled images, and near copies within the pool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data.duplicates import Mask, Rows
from noisystudent.data.held_out import HeldOut
from noisystudent.data.index import Index
from noisystudent.data.phash import (
    Hashes,
    Signature,
    Thumbnails,
    bits_between,
    digests_of,
    has_detail,
    thumbnails_of,
)
from noisystudent.data.scan import Scan
from noisystudent.data.splits import Leak, Members

LEAST_SIDE = 64
"""Sides in pixels from which on near copies are looked for by default."""

_FEWEST = 200  # with fewer held-out images, labelled ones help to tell how much images are alike
_POOL_BITS = 32  # within the pool, where crops and mirrored images are not looked for
_NEIGHBOURS = 4  # of an image among those with an equal word of the hash, which are compared with it
_AT_ONCE = 8192  # images that are processed at once, which bounds the temporary arrays

Distances = NDArray[np.int32]
"""(n,) bits of 256 in which two hashes differ."""


def signature_of(config: DataConfig, name: str, before: dict[str, Scan]) -> Signature | None:
    """What the scan of set `name` keeps of each image, after the scans `before` it; the pool is the last."""
    if config.near_duplicates == "off":
        return None
    if name != "pool":
        return "both"  # the variants of val and test are made of thumbnails
    any_size = config.near_duplicates == "all"
    return "digest" if any_size or any(_large(scan.index).any() for scan in before.values()) else None


def near_copies(
    scans: dict[str, Scan], members: Members, config: DataConfig, progress: Progress
) -> list[Leak]:
    """Search for near copies, remove them from the members of the pool, and return them.

    A pool image that is near an image of test or val is removed. A labelled image that is near one stays: the
    user has chosen it. One that is near an earlier image of the pool is removed only if
    `config.pool_near_duplicates` says so.

    Args:
        scans: the scans, with signatures as `signature_of` says.
        members: the images of each set, without exact copies; the mask of the pool is changed.
        config: its fields near_duplicates and pool_near_duplicates.
        progress: advances with the search, and a signal stops it.

    Raises:
        Stopped: a signal stopped the search.
    """
    if config.near_duplicates == "off":
        return []
    all_sizes, leaks = config.near_duplicates == "all", list[Leak]()
    for name in ("test", "val"):  # an image that is near both is a copy of test
        if name not in members:
            continue
        part, own = members[name]
        of_set = np.flatnonzero(own if all_sizes else own & _large(scans[part].index))
        if len(of_set) == 0:
            continue
        held_out = HeldOut(
            thumbnails_of(_kept(scans[part])[of_set]), _others(scans, members, _FEWEST - len(of_set))
        )
        for searched in ("labeled", "pool"):
            scan, mask = members[searched]
            rows, near, bits = _search(scans[scan], mask, held_out, progress)
            kept = searched == "labeled"
            mask[rows] = kept
            leaks.append(Leak(searched, scan, rows, name, part, of_set[near], _reason(kept), bits))
    if "pool" in scans and scans["pool"].signatures is not None:
        leaks.append(_within(scans["pool"], members["pool"][1], config))
    return [leak for leak in leaks if len(leak.rows)]


def _within(pool: Scan, mask: Mask, config: DataConfig) -> Leak:
    """Near copies within the pool, which leave `mask` if the configuration says so."""
    compared = np.flatnonzero(mask if config.near_duplicates == "all" else mask & _large(pool.index))
    later, earlier, bits = copies_within(digests_of(_kept(pool))[0][compared])
    rows, kept = compared[later], config.pool_near_duplicates == "report"
    mask[rows] = kept
    return Leak("pool", "pool", rows, "pool", "pool", compared[earlier], _reason(kept), bits)


def _others(scans: dict[str, Scan], members: Members, most: int) -> Thumbnails:
    """At most so many labelled images, at equal distances, so that all classes are among them."""
    scan, mask = members["labeled"]
    rows = np.flatnonzero(mask)
    chosen = np.linspace(0, len(rows) - 1, max(0, min(most, len(rows)))).round().astype(np.int64)
    return thumbnails_of(_kept(scans[scan])[rows[chosen]])


def _reason(kept: bool) -> Literal["near copy", "near copy kept"]:
    return "near copy kept" if kept else "near copy"


def copies_within(codes: Hashes) -> tuple[Rows, Rows, Distances]:
    """Images that are near an earlier one, without crops and mirrored images.

    Near copies almost always share one of the 8 words of their hashes, so they are neighbours when the images
    are sorted by this word. Time grows with the number of images, not with its square, and so does memory,
    also if many images are alike, as the frames of videos are.

    Args:
        codes: (n, 32) hashes.

    Returns:
        Their positions, ascending; for each the nearest of its earlier neighbours, the first of several; and
        the distance.
    """
    unknown = np.iinfo(np.int64).max
    best = np.full(len(codes), unknown)  # of each image, distance and earlier position as one number
    for later, earlier in _neighbours(codes):
        bits = bits_between(codes[later], codes[earlier])
        near = bits <= _POOL_BITS
        ranks = bits[near].astype(np.int64) * len(codes) + earlier[near]
        best[later[near]] = np.minimum(best[later[near]], ranks)
    rows = np.flatnonzero(best != unknown)
    distances, nearest = np.divmod(best[rows], len(codes))
    return rows, nearest, distances.astype(np.int32)


def _neighbours(codes: Hashes) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of a later and an earlier image with an equal word, in parts; each later image once in a part."""
    words, usable = np.ascontiguousarray(codes).view(np.uint32), has_detail(codes)
    for column in words.T:
        order = np.argsort(column, kind="stable")  # equal words in the order of the images
        order = order[usable[order]]
        for step in range(1, _NEIGHBOURS + 1):
            for part in _slices(len(order) - step):
                earlier, later = order[part], order[part.start + step : part.stop + step]
                same = column[later] == column[earlier]
                yield later[same], earlier[same]


def _search(scan: Scan, mask: Mask, held_out: HeldOut, progress: Progress) -> tuple[Rows, Rows, Distances]:
    """Rows of `mask` with a near copy in `held_out`, the position of the copy there, and the distance."""
    rows = np.flatnonzero(mask)
    integers = np.empty(0, np.int64)
    results = [(integers, integers, integers.astype(np.int32), integers.astype(np.float32))]
    for part in _slices(len(rows)):
        at, *others = held_out.nearest(*digests_of(_kept(scan)[rows[part]]))
        results.append((part.start + at, *others))
        progress.check()
        progress.advance("searching near copies", part.stop, len(rows))
    at, near, bits, distances = (np.concatenate(columns) for columns in zip(*results, strict=True))
    copies = held_out.are_copies(near, distances)
    return rows[at[copies]], near[copies], bits[copies]


def _large(index: Index) -> Mask:
    """(N,) True for images with sides of at least `LEAST_SIDE` pixels."""
    large: Mask = np.minimum(index.full("height"), index.full("width")) >= LEAST_SIDE
    return large


def _kept(scan: Scan) -> NDArray[np.uint8]:
    """(N, B) the signatures of a scan, on disk."""
    if scan.signatures is None:
        raise ValueError("the scan has kept no signatures")
    return np.asarray(np.memmap(scan.signatures, np.uint8, "r")).reshape(len(scan.index), -1)


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _AT_ONCE, count)) for start in range(0, count, _AT_ONCE))
