"""The digits data set of scikit-learn: 1,797 images of handwritten digits, 8×8 pixels."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from noisystudent.data.sources import ArraySource, Sources
from noisystudent.runtime import generator

_LABELS_PER_CLASS = 5
_TEST = 897  # leaves 900 images: 50 labelled ones and a pool of 850


def digits(seed: int) -> Sources:
    """Five labelled images for each class, 897 test images and a pool of 850; drawn again for each seed.

    The data set: Alpaydin and Kaynak, UCI repository, 1998.
    """
    bunch = load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)  # the data set has grey levels 0 … 16
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
