"""Search for images with the same content, with 8 bytes of memory for each image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.data.index import Index

Hashes = NDArray[np.uint8]
"""(n, 16) content hashes."""
Rows = NDArray[np.int64]
"""(n,) rows of an index."""
Mask = NDArray[np.bool_]
"""(N,) True for the rows of an index that are in use."""

_AT_ONCE = 65_536  # keys or rows that are processed at once, which bounds the temporary arrays


class Contents:
    """The content hashes of some rows ("members") of an index, sorted for search.

    A key is 64 bits: the upper bits of a content hash and, in the lower bits, the row. One sort of these
    integers, in place, puts all copies of a content next to each other, in the order of their rows. Rows with
    equal upper bits are candidates; the whole hash, read from the memory-mapped index, decides.
    """

    def __init__(self, index: Index, members: Mask) -> None:
        self._index = index
        # as many low bits as the largest row number needs
        self._row_bits = np.uint64((1 << len(index).bit_length()) - 1)
        self._keys = np.empty(int(np.count_nonzero(members)), np.uint64)
        filled = 0
        for start, hashes in index.parts("content_hash"):
            rows = np.flatnonzero(members[start : start + len(hashes)])
            part = self._keys[filled : filled + len(rows)]
            np.bitwise_or(self._prefix(hashes[rows]), (rows + start).astype(np.uint64), out=part)
            filled += len(rows)
        self._keys.sort()

    def first(self, hashes: Hashes) -> Rows:
        """(n,) the first member row with the same content as each hash, -1 if there is none."""
        prefix = self._prefix(hashes)
        at = np.searchsorted(self._keys, prefix)  # the first key with this prefix, if there is one
        first = np.full(len(hashes), -1, np.int64)
        pending = self._candidates(np.arange(len(hashes)), prefix, at)
        while len(pending):
            rows = (self._keys[at[pending]] & self._row_bits).astype(np.int64)
            same = (self._index.take("content_hash", rows) == hashes[pending]).all(axis=1)
            first[pending[same]] = rows[same]
            pending = pending[~same]  # another content with the same prefix: try the next key
            at[pending] += 1
            pending = self._candidates(pending, prefix, at)
        return first

    def copies(self) -> tuple[Rows, Rows]:
        """Member rows whose content an earlier member has.

        Returns:
            The rows, ascending, and for each of them the first member row with the same content.
        """
        suspects = np.sort(np.concatenate([np.empty(0, np.int64), *self._repeated_prefixes()]))
        parts = (suspects[at : at + _AT_ONCE] for at in range(0, len(suspects), _AT_ONCE))
        firsts = [self.first(self._index.take("content_hash", rows)) for rows in parts]
        first = np.concatenate([np.empty(0, np.int64), *firsts])
        # a suspect that is its own first row only shares the prefix of another content
        return suspects[first != suspects], first[first != suspects]

    def _prefix(self, hashes: Hashes) -> NDArray[np.uint64]:
        """(n,) first 8 bytes of each hash, with zeros in the bits of the row."""
        upper: NDArray[np.uint64] = np.ascontiguousarray(hashes).view(np.uint64)[:, 0] & ~self._row_bits
        return upper

    def _candidates(self, pending: Rows, prefix: NDArray[np.uint64], at: Rows) -> Rows:
        """Those of `pending` whose key at `at` has the same prefix as their hash."""
        pending = pending[at[pending] < len(self._keys)]
        same: Mask = self._keys[at[pending]] & ~self._row_bits == prefix[pending]
        return pending[same]

    def _repeated_prefixes(self) -> list[Rows]:
        """Member rows whose key has the same prefix as the key before it, in slices."""
        slices = []
        for start in range(1, len(self._keys), _AT_ONCE):
            keys = self._keys[start - 1 : start + _AT_ONCE]
            same = (keys[1:] ^ keys[:-1]) <= self._row_bits  # XOR of equal prefixes is 0 in the upper bits
            slices.append((keys[1:][same] & self._row_bits).astype(np.int64))
        return slices


def unique_contents(hashes: Hashes) -> tuple[Rows, Rows]:
    """(M,) the first image with each content, sorted by content, and (N,) the content of each image."""
    _, first, inverse = np.unique(keys_of(hashes), return_index=True, return_inverse=True)
    return first, inverse


def keys_of(hashes: Hashes) -> NDArray[Any]:
    """(N,) each hash as one value, so that numpy can sort and compare whole hashes."""
    # raw bytes ("V"): a string type ("S") would ignore zeros at the end
    return np.ascontiguousarray(hashes).view(f"V{hashes.shape[1]}").ravel()
