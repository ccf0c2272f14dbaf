"""Real images that come with scikit-learn: 1,797 handwritten digits, 8×8 pixels."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from noisystudent.data.sources import ArraySource, Sources
from noisystudent.runtime import generator

_LABELS_PER_CLASS = 10
_TEST = 597


def digits(seed: int) -> Sources:
    """Ten labelled images a class, 597 for test, and the other 1,100 as the pool; drawn anew for each seed.

    The set: Alpaydin and Kaynak, UCI repository, 1998.
    """
    bunch = load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)  # 17 grey levels, 0 … 16
    labels = np.asarray(bunch.target)
    order = generator(seed, "demo/digits").permutation(len(images))
    test, rest = order[:_TEST], order[_TEST:]
    chosen = np.concatenate([rest[labels[rest] == digit][:_LABELS_PER_CLASS] for digit in range(10)])
    pool = np.setdiff1d(rest, chosen)

    def source(name: str, rows: np.ndarray) -> ArraySource:
        return ArraySource(images[rows], [str(label) for label in labels[rows]], name=name)

    return Sources(
        labeled=source("digits", chosen), unlabeled=source("pool", pool), val=None, test=source("test", test)
    )
