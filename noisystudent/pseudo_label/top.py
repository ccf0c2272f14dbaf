"""The k most likely classes of many images at once, exactly and without sorting all classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CLASS_BITS = np.int64(0xFFFF_FFFF)


def top_k(probs: NDArray[np.float32], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The k most likely classes, most likely first; of equal probabilities the lowest class comes first.

    Args:
        probs: (b, K) at least 0 and not NaN.
        k: 1 to K.

    Returns:
        classes (b, k) and their probabilities (b, k).
    """
    flat = np.flatnonzero(probs >= _bound(probs, k))  # a few more than k of each row
    rows, classes = np.divmod(flat, probs.shape[1])
    counts = np.bincount(rows, minlength=len(probs))
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    keys = np.zeros((len(probs), counts.max(initial=k)), np.int64)
    # positive floats are in the order of their bits; below these stands the class, the lowest as the highest
    bits = probs.reshape(-1)[flat].view(np.int32).astype(np.int64)
    keys[rows, places] = bits << 32 | _CLASS_BITS - classes
    found = np.sort(keys, axis=1)[:, : -k - 1 : -1]
    return (_CLASS_BITS - (found & _CLASS_BITS)).astype(np.int32), (found >> 32).astype(np.int32).view(
        np.float32
    )


def _bound(probs: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """(b, 1) a probability that at least k classes of a row reach: the k-th of the heads of some groups.

    With four groups for each of the k, few groups hold two of the k most likely, so few others reach it.
    """
    width = max(1, probs.shape[1] // (4 * k))
    groups = probs.shape[1] // width
    heads = probs[:, : groups * width].reshape(len(probs), width, groups).max(axis=1)
    return np.partition(heads, groups - k, axis=1)[:, groups - k, None]
