"""Search for near copies of held-out images.

A pair is a copy if two tests say so. The hashes differ in few bits; that is enough for photographs. Images
with a common layout, as digits or X-rays, all have such hashes. There a copy must also be much nearer to its
original than other known images are, by the distance of their small pictures. This is the ratio test of Lowe,
"Distinctive image features from scale-invariant keypoints" (2004), section 7.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from noisystudent.data.duplicates import Mask, Rows
from noisystudent.data.phash import (
    BYTES,
    COARSE_BYTES,
    VARIANTS,
    Hashes,
    Pictures,
    Thumbnails,
    Vectors,
    bits_between,
    has_detail,
    hash_variants,
    hashes,
    pictures,
    vector_variants,
    vectors,
)

# The limits keep the share of clean pool images that are removed near 0.5 %: benchmarks/leaks.py.
_COARSE = 14  # of 64 bits: more, and a pair is not looked at further
_BITS = 88  # of 256, at most
# Of clean pool images with a hash near a held-out one, about the cube of a ratio has a smaller ratio. So this
# share of all images is removed, whatever share the hash finds.
_REMOVED = 0.003
_RIVAL = 3  # the known image whose distance counts; two nearer ones may be copies of the image themselves
_SAME = 3e-4  # distance of pictures up to which they are the same, however alike the held-out images are
_PAIRS = 1 << 23  # of an image and a variant, at once: bounds the temporary arrays
_COMPARED = 1024  # images or pairs whose variants are in memory at once
_OWNERS = 16  # held-out images whose variants are compared with all others at once

Distances = NDArray[np.float32]
"""(n,) 1 minus the cosine of two vectors."""


class HeldOut:
    """The variants of held-out images, which are searched for the nearest one to an image."""

    def __init__(self, thumbnails: Thumbnails, others: Thumbnails) -> None:
        """Make the variants.

        Args:
            thumbnails: (m, 32, 32, 3), one for each held-out image.
            others: (n, 32, 32, 3) of further images that show how much images of this kind are alike.
        """
        import faiss  # takes 0.1 s, and most commands do not need it

        parts = (thumbnails[start : start + _COMPARED] for start in range(0, len(thumbnails), _COMPARED))
        codes = np.concatenate([np.empty((0, VARIANTS, BYTES), np.uint8), *map(hash_variants, parts)])
        self._owner, self._variant = np.nonzero(has_detail(codes))
        self._hashes = codes[self._owner, self._variant]
        known = np.concatenate([thumbnails, others])
        self._thumbnails, self._vectors = thumbnails, vectors(pictures(known))
        self._index = faiss.IndexBinaryFlat(8 * COARSE_BYTES)
        self._index.add(np.ascontiguousarray(self._hashes[:, :COARSE_BYTES]))
        self._ratio = float(np.cbrt(_REMOVED / self._crowding(hashes(known))))

    def nearest(self, codes: Hashes, small: Pictures) -> tuple[Rows, Rows, NDArray[np.int32], Distances]:
        """The images whose hash is near one here.

        Args:
            codes: (n, 32) hashes of images.
            small: (n, 3, 16, 16) their pictures.

        Returns:
            Their positions in `codes`, ascending; for each the held-out image with the nearest picture among
            those with a near hash; the bits in which the two hashes differ; and the distance of the pictures.
        """
        parts = [
            (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
        ]
        for queries, variants, bits in self._matches(codes):
            distances = self._distances(small, queries, variants)
            order = np.lexsort((variants, bits, distances, queries))
            rows, first = np.unique(queries[order], return_index=True)
            best = order[first]
            parts.append((rows, self._owner[variants[best]], bits[best], distances[best]))
        rows, owners, bits, distances = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return rows, owners, bits, distances

    def are_copies(self, owners: Rows, distances: Distances) -> Mask:
        """(p,) True for pairs from `nearest` that are copies: far nearer than other known images are.

        All pairs should come in one call: each needs the distances of all known images from its own.
        """
        if self._ratio >= 1:  # the hash alone seldom takes one held-out image for another
            return np.ones(len(owners), np.bool_)
        own, at = np.unique(owners, return_inverse=True)
        parts = [self._spacing(own[start : start + _OWNERS]) for start in range(0, len(own), _OWNERS)]
        spacing = np.concatenate([np.empty(0, np.float32), *parts])[at]
        return np.asarray(distances <= np.maximum(self._ratio * spacing, _SAME), np.bool_)

    def _crowding(self, codes: Hashes) -> float:
        """Share of the known images, whose hashes are `codes`, that the hash takes for a held-out one.

        One more is counted than there are, as few images tell little.
        """
        crowded = np.zeros(len(codes), np.bool_)
        for queries, variants, _ in self._matches(codes):
            crowded[queries[self._owner[variants] != queries]] = True
        return (1 + int(crowded.sum())) / (1 + len(codes))

    def _matches(self, codes: Hashes) -> Iterator[tuple[Rows, Rows, NDArray[np.int32]]]:
        """Positions in `codes`, variants with a hash near theirs, and bits in which the two differ."""
        usable = np.flatnonzero(has_detail(codes))
        step = max(1, _PAIRS // max(1, len(self._hashes)))
        for start in range(0, len(usable), step):
            rows = usable[start : start + step]
            coarse = np.ascontiguousarray(codes[rows, :COARSE_BYTES])
            ends, _, variants = self._index.range_search(coarse, _COARSE + 1)  # those that are below it
            queries = np.repeat(rows, (ends[1:] - ends[:-1]).astype(np.int64))
            bits = bits_between(codes[queries], self._hashes[variants])
            close = np.flatnonzero(bits <= _BITS)
            yield queries[close], variants[close], bits[close]

    def _distances(self, small: Pictures, queries: Rows, variants: Rows) -> Distances:
        """(p,) distances of pictures from variants."""
        distances = np.empty(len(queries), np.float32)
        order = np.argsort(self._owner[variants], kind="stable")  # the variants of an image are made once
        for start in range(0, len(order), _COMPARED):
            pairs = order[start : start + _COMPARED]
            owners, at = np.unique(self._owner[variants[pairs]], return_inverse=True)
            theirs = vector_variants(self._thumbnails[owners])[at, self._variant[variants[pairs]]]
            ours = vectors(small[queries[pairs]])
            distances[pairs] = 1 - np.einsum("pd,pd->p", ours, theirs)
        return distances

    def _spacing(self, owners: Rows) -> Distances:
        """(o,) distance of the third nearest other known image from each held-out one; the last if fewer."""
        others = len(self._vectors) - 1
        if others == 0:
            return np.ones(len(owners), np.float32)  # the distance of pictures that have nothing in common
        theirs: Vectors = vector_variants(self._thumbnails[owners])
        cosines = (self._vectors @ theirs.reshape(-1, theirs.shape[-1]).T).reshape(-1, *theirs.shape[:2])
        distances = 1 - cosines.max(axis=2).T
        distances[np.arange(len(owners)), owners] = np.inf
        rival = min(_RIVAL, others) - 1
        return np.asarray(np.partition(distances, rival, axis=1)[:, rival], np.float32)
