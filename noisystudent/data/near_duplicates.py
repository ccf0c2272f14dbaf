"""Near copies of val and test images in the pool, and near copies within the pool."""

from __future__ import annotations

from collections.abc import Iterator
from math import log10

import numpy as np
from numpy.typing import NDArray

from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data.duplicates import Mask, Rows
from noisystudent.data.index import Index
from noisystudent.data.phash import (
    BYTES,
    COARSE_BYTES,
    SIDE,
    VARIANTS,
    Hashes,
    Signature,
    Thumbnails,
    has_detail,
    hash_variants,
    hashes,
    vector_variants,
    vectors,
)
from noisystudent.data.scan import Scan
from noisystudent.data.splits import Leak, Members

LEAST_SIDE = 64
"""Sides in pixels from which on a hash alone tells a copy from another image."""

# Limits were chosen so that at most 0.5 % of clean pool images are removed: benchmarks/leaks.py.
_COARSE = 14  # of 64 bits: more, and a pair is not looked at further
_BITS = 88  # of 256, at most
_COSINE = 0.88  # least of the vectors, for images below LEAST_SIDE
# Many held-out images have many chances of a false match. With 6,250 of them, a hash may differ in 82 bits.
_MANY, _BITS_MANY = 6_250, 82
_FEWER = 8  # bits for ten times as many images
_POOL_BITS = 32  # within the pool, where crops and mirrored images are not looked for
_NEIGHBOURS = 4  # of an image among those with an equal word of the hash, which are compared with it
_AT_ONCE = 8192  # images that are processed at once, which bounds the temporary arrays

Distances = NDArray[np.int32]
"""(n,) bits of 256 in which two hashes differ."""


def signature_of(config: DataConfig, name: str, before: dict[str, Scan]) -> Signature | None:
    """What the scan of set `name` keeps of each image, after the scans `before` it; the pool is the last."""
    if config.near_duplicates == "off":
        return None
    if name != "pool" or config.near_duplicates == "all":
        return "thumbnail"  # the variants of val and test are made of them
    return "hash" if any(_large(scan.index).any() for scan in before.values()) else None


def near_copies(
    scans: dict[str, Scan], members: Members, config: DataConfig, progress: Progress
) -> list[Leak]:
    """Search the pool for near copies, remove them from its members, and return them.

    A pool image that is near an image of test or val is removed. One that is near an earlier image of the
    pool is removed only if `config.pool_near_duplicates` says so.

    Args:
        scans: the scans, with signatures as `signature_of` says.
        members: the images of each set, without exact copies; the mask of the pool is changed.
        config: its fields near_duplicates and pool_near_duplicates.
        progress: advances with the search, and a signal stops it.

    Raises:
        Stopped: a signal stopped the search.
    """
    if "pool" not in scans or scans["pool"].signatures is None:
        return []
    pool, mask, leaks = scans["pool"], members["pool"][1], list[Leak]()
    codes = _hashes(pool)
    all_sizes = config.near_duplicates == "all"
    for name in ("test", "val"):  # an image that is near both is a copy of test
        if name in members:
            part, own = members[name]
            large = _large(scans[part].index)
            of_set = np.flatnonzero(own if all_sizes else own & large)
            held_out = HeldOut(_thumbnails(scans[part], of_set), large[of_set])
            rows, near, distances = _search(pool, codes, mask, held_out, progress)
            leaks.append(Leak("pool", "pool", rows, name, part, of_set[near], "near copy", distances))
            mask[rows] = False
    compared = np.flatnonzero(mask if all_sizes else mask & _large(pool.index))
    later, earlier, distances = copies_within(codes[compared])
    rows, first = compared[later], compared[earlier]
    if config.pool_near_duplicates == "remove":
        mask[rows] = False
        leaks.append(Leak("pool", "pool", rows, "pool", "pool", first, "near copy", distances))
    else:
        leaks.append(Leak("pool", "pool", rows, "pool", "pool", first, "near copy kept", distances))
    return [leak for leak in leaks if len(leak.rows)]


class HeldOut:
    """The variants of held-out images, which are searched for the nearest one to a pool image."""

    def __init__(self, thumbnails: Thumbnails, large: Mask) -> None:
        """Make the variants.

        Args:
            thumbnails: (m, 32, 32, 3), one for each image.
            large: (m,) True for images that a hash alone is enough for.
        """
        import faiss  # takes 0.1 s, and most commands do not need it

        parts = [hash_variants(thumbnails[part]) for part in _slices(len(thumbnails))]
        codes = np.concatenate([np.empty((0, VARIANTS, BYTES), np.uint8), *parts])
        self._owner, self._variant = np.nonzero(has_detail(codes))
        self._hashes = codes[self._owner, self._variant]
        self._thumbnails, self._large = thumbnails, large
        limit = min(_BITS, _BITS_MANY - _FEWER * log10(max(len(thumbnails), 1) / _MANY))
        self._limits = np.where(large, limit, _BITS)[self._owner]
        self._index = faiss.IndexBinaryFlat(8 * COARSE_BYTES)
        self._index.add(np.ascontiguousarray(self._hashes[:, :COARSE_BYTES]))

    def nearest(self, codes: Hashes, thumbnails: Thumbnails | None) -> tuple[Rows, Rows, Distances]:
        """The images that have a near copy here.

        Args:
            codes: (n, 32) hashes of images.
            thumbnails: (n, 32, 32, 3) of the same images. None: all images here are large.

        Returns:
            Their positions in `codes`, ascending; for each the held-out image with the nearest variant; and
            the distance to it.
        """
        coarse = np.ascontiguousarray(codes[:, :COARSE_BYTES])
        ends, _, variants = self._index.range_search(coarse, _COARSE + 1)  # those that are below it
        queries = np.repeat(np.arange(len(codes)), (ends[1:] - ends[:-1]).astype(np.int64))
        distances = bits_between(codes[queries], self._hashes[variants])
        close = np.flatnonzero(distances <= self._limits[variants])
        queries, variants, distances = queries[close], variants[close], distances[close]
        if thumbnails is not None:
            close = np.flatnonzero(self._alike(thumbnails, queries, variants))
            queries, variants, distances = queries[close], variants[close], distances[close]
        order = np.lexsort((variants, distances, queries))
        rows, first = np.unique(queries[order], return_index=True)
        return rows, self._owner[variants[order][first]], distances[order][first]

    def _alike(self, thumbnails: Thumbnails, queries: Rows, variants: Rows) -> Mask:
        """(p,) True for pairs of an image and a variant that is large, or whose vectors agree."""
        alike = self._large[self._owner[variants]]
        for part in _slices(len(queries)):
            pairs = part.start + np.flatnonzero(~alike[part])
            at = variants[pairs]
            theirs = vector_variants(self._thumbnails[self._owner[at]])[np.arange(len(at)), self._variant[at]]
            ours = vectors(thumbnails[queries[pairs]])
            alike[pairs] = np.einsum("pd,pd->p", ours, theirs) >= _COSINE
        return alike


def copies_within(codes: Hashes) -> tuple[Rows, Rows, Distances]:
    """Images that are near an earlier one, without crops and mirrored images.

    Near copies almost always share one of the 8 words of their hashes, so they are neighbours when the images
    are sorted by this word. Time and memory grow with the number of images, not with its square.

    Args:
        codes: (n, 32) hashes.

    Returns:
        Their positions, ascending; for each an earlier one that is near it; and the distance.
    """
    words = np.ascontiguousarray(codes).view(np.uint32)
    usable = np.flatnonzero(has_detail(codes))
    pairs = [np.empty((3, 0), np.int64)]
    for column in words.T:
        order = usable[np.argsort(column[usable], kind="stable")]  # equal words in the order of the images
        for step in range(1, _NEIGHBOURS + 1):
            same = np.flatnonzero(column[order[step:]] == column[order[:-step]])
            later, earlier = order[step:][same], order[:-step][same]
            distances = bits_between(codes[later], codes[earlier])
            pairs.append(np.stack([later, earlier, distances])[:, distances <= _POOL_BITS])
    later, earlier, distances = np.concatenate(pairs, axis=1)
    order = np.lexsort((earlier, distances, later))
    rows, first = np.unique(later[order], return_index=True)
    return rows, earlier[order][first], distances[order][first].astype(np.int32)


def bits_between(some: Hashes, others: Hashes) -> Distances:
    """(n,) number of bits in which two hashes differ."""
    differ = np.ascontiguousarray(some ^ others).view(np.uint64)
    distances: Distances = np.bitwise_count(differ).sum(axis=-1, dtype=np.int32)
    return distances


def _search(
    pool: Scan, codes: Hashes, mask: Mask, held: HeldOut, progress: Progress
) -> tuple[Rows, Rows, Distances]:
    """Rows of the pool with a near copy in `held`, the position of the copy there, and the distance.

    `codes` are the hashes of all images of the pool.
    """
    results = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))]
    rows = np.flatnonzero(mask)
    for part in _slices(len(rows)):
        thumbnails = None if _is_hash(pool) else _thumbnails(pool, rows[part])
        at, near, distances = held.nearest(codes[rows[part]], thumbnails)
        results.append((rows[part][at], near, distances))
        progress.check()
        progress.advance("searching near copies", part.stop, len(rows))
    rows, near, distances = (np.concatenate(columns) for columns in zip(*results, strict=True))
    return rows, near, distances


def _large(index: Index) -> Mask:
    """(N,) True for images with sides of at least `LEAST_SIDE` pixels."""
    large: Mask = np.minimum(index.full("height"), index.full("width")) >= LEAST_SIDE
    return large


def _signatures(scan: Scan) -> NDArray[np.uint8]:
    """(N, B) the signatures of a scan, on disk."""
    if scan.signatures is None:
        raise ValueError("the scan has kept no signatures")
    return np.asarray(np.memmap(scan.signatures, np.uint8, "r")).reshape(len(scan.index), -1)


def _is_hash(scan: Scan) -> bool:
    return bool(_signatures(scan).shape[1] == BYTES)


def _thumbnails(scan: Scan, rows: Rows) -> Thumbnails:
    """(n, 32, 32, 3) of some rows of a scan that keeps thumbnails."""
    return _signatures(scan)[rows].reshape(-1, SIDE, SIDE, 3)


def _hashes(scan: Scan) -> Hashes:
    """(N, 32) of all images of a scan; those that the scan has kept stay on disk."""
    if _is_hash(scan):
        return _signatures(scan)
    rows = np.arange(len(scan.index))
    parts = [hashes(_thumbnails(scan, rows[part])) for part in _slices(len(rows))]
    return np.concatenate([np.empty((0, BYTES), np.uint8), *parts])


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _AT_ONCE, count)) for start in range(0, count, _AT_ONCE))
