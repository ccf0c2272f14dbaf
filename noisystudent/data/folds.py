"""Division of the labelled images into folds, stratified by class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from noisystudent.data.duplicates import Hashes, unique_contents
from noisystudent.errors import InputError
from noisystudent.runtime import generator


def divide(hashes: Hashes, labels: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Put every image into one of the folds.

    Each class, and the whole set, is dealt out evenly: the numbers of contents of two folds differ by at most
    one. Copies of an image are in the same fold; if their labels differ, they count for the class with the
    smaller number. The division depends on the contents only, not on file names or their order.

    Args:
        hashes: (N, 16) uint8 content hashes.
        labels: (N,) class numbers.
        folds: number of folds.
        seed: seed of the division.

    Returns:
        (N,) number of the fold of each image, from 0 on.

    Raises:
        InputError: there are fewer contents than folds.
    """
    first, inverse = unique_contents(hashes)
    if len(first) < folds:
        raise InputError(f"--folds is {folds}, but there are {len(first)} different labelled images")
    # A content with two labels has the smaller one, so that the order of the files has no effect.
    classes = np.full(len(first), labels.max(), np.int64)
    np.minimum.at(classes, inverse, labels)
    shuffled = generator(seed, "folds").permutation(len(first))
    order = shuffled[np.argsort(classes[shuffled], kind="stable")]
    fold = np.empty(len(first), np.int64)
    fold[order] = np.arange(len(first)) % folds
    return fold[inverse]
