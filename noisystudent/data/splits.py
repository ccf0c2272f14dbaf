"""Which labelled images become val, what stands under two labels, and the order of the classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.data.contents import Hashes
from noisystudent.errors import InputError
from noisystudent.runtime import generator


def split_val(hashes: Hashes, labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose val off the labels: stratified, by content, whatever the files are called and however ordered.

    Each class gives its share of `fraction`, classes with the largest remainders one image more until the
    total is right; every class keeps one content for training. Copies of an image go the same way; an image
    that stands under two labels stays in training.

    Args:
        hashes: (N, 16) uint8.
        labels: (N,) class numbers.
        fraction: share of the contents, between 0 and 1.
        seed: of the choice.

    Returns:
        (N,) True for val.

    Raises:
        InputError: no class can spare an image.
    """
    free = ~conflicting(hashes, labels)
    keys, first = np.unique(
        _keys(hashes)[free], return_index=True
    )  # sorted by content: order of files is gone
    classes = labels[free][first]
    counts = np.bincount(classes, minlength=int(labels.max()) + 1)
    quota = _quotas(counts, fraction, generator(seed, "split"))
    if quota.sum() == 0:
        raise InputError("data.val is empty and no class has two images to split one off; give --val")
    chosen = [
        keys[classes == number][generator(seed, "split", number).permutation(counts[number])[:share]]
        for number, share in enumerate(quota)
    ]
    return free & np.asarray(np.isin(_keys(hashes), np.concatenate(chosen)), np.bool_)


def _quotas(counts: NDArray[np.int64], fraction: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Images of val a class: largest remainders, ties by draw, always one fewer than the class has."""
    spare = np.maximum(counts - 1, 0)
    exact = counts * fraction
    quota: NDArray[np.int64] = np.minimum(np.floor(exact).astype(np.int64), spare)
    missing = max(1, round(int(counts.sum()) * fraction)) - int(quota.sum())
    order = np.lexsort((rng.permutation(len(counts)), -(exact - quota)))
    while missing > 0 and (quota < spare).any():
        takers = order[(quota < spare)[order]][:missing]
        quota[takers] += 1
        missing -= len(takers)
    return quota


def conflicting(hashes: Hashes, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) True where the same content stands under two labels."""
    _, first, inverse = np.unique(_keys(hashes), return_index=True, return_inverse=True)
    differs = labels != labels[first][inverse]
    mixed = np.bincount(inverse, weights=differs, minlength=len(first)) > 0
    return np.asarray(mixed[inverse], np.bool_)


def class_names(names: list[str]) -> tuple[str, ...]:
    """Class names in their order: by number if all are whole numbers, else alphabetical."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _keys(hashes: Hashes) -> NDArray[Any]:
    """Each hash as one value that sorts and compares."""
    return np.ascontiguousarray(hashes).view(f"V{hashes.shape[1]}").ravel()
