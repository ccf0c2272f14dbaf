"""Which images hold the same bytes, found with 8 bytes of memory an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from noisystudent.data.index import Index

Hashes = NDArray[np.uint8]
"""(n, 16) content hashes."""
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

_AT_ONCE = 65_536


class Contents:
    """The contents of some rows of an index, to look others up in.

    A key is the upper bits of a content hash and, in the lower bits, the row: one sort of integers, in place,
    puts all copies side by side, first row first. Equal upper bits make a candidate; the whole hash, read
    from the mapped index, decides.
    """

    def __init__(self, index: Index, members: Mask) -> None:
        self._index = index
        self._low = np.uint64((1 << len(index).bit_length()) - 1)
        self._keys = np.empty(int(np.count_nonzero(members)), np.uint64)
        filled = 0
        for start, hashes in index.parts("content_hash"):
            rows = np.flatnonzero(members[start : start + len(hashes)])
            here = self._keys[filled : filled + len(rows)]
            np.bitwise_or(self._prefix(hashes[rows]), (rows + start).astype(np.uint64), out=here)
            filled += len(rows)
        self._keys.sort()

    def first(self, hashes: Hashes) -> Rows:
        """(n,) the first member row with the same content as each hash, -1 where there is none."""
        prefix = self._prefix(hashes)
        at = np.searchsorted(self._keys, prefix)
        found = np.full(len(hashes), -1, np.int64)
        pending = self._candidates(np.arange(len(hashes)), prefix, at)
        while len(pending):
            rows = (self._keys[at[pending]] & self._low).astype(np.int64)
            same = (self._index.take("content_hash", rows) == hashes[pending]).all(axis=1)
            found[pending[same]] = rows[same]
            pending = pending[~same]  # another content with the same prefix: look at the next key
            at[pending] += 1
            pending = self._candidates(pending, prefix, at)
        return found

    def copies(self) -> tuple[Rows, Rows]:
        """Member rows whose content stands in an earlier one, ascending, and the first such row of each."""
        suspects = np.sort(np.concatenate([np.empty(0, np.int64), *self._followers()]))
        parts = (suspects[at : at + _AT_ONCE] for at in range(0, len(suspects), _AT_ONCE))
        firsts = [self.first(self._index.take("content_hash", rows)) for rows in parts]
        first = np.concatenate([np.empty(0, np.int64), *firsts])
        return suspects[first != suspects], first[first != suspects]

    def _prefix(self, hashes: Hashes) -> NDArray[np.uint64]:
        upper: NDArray[np.uint64] = np.ascontiguousarray(hashes).view(np.uint64)[:, 0] & ~self._low
        return upper

    def _candidates(self, pending: Rows, prefix: NDArray[np.uint64], at: Rows) -> Rows:
        """Those of `pending` whose key at `at` has their prefix."""
        pending = pending[at[pending] < len(self._keys)]
        same: Mask = self._keys[at[pending]] & ~self._low == prefix[pending]
        return pending[same]

    def _followers(self) -> list[Rows]:
        """Rows of keys that have the prefix of the key before, a slice at a time."""
        found = []
        for start in range(1, len(self._keys), _AT_ONCE):
            keys = self._keys[start - 1 : start + _AT_ONCE]
            alike = (keys[1:] ^ keys[:-1]) <= self._low
            found.append((keys[1:][alike] & self._low).astype(np.int64))
        return found
