"""Sets of images that give cached features in place of pixels."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.data.imageset import ImageSet
from noisystudent.data.prepare import Dataset
from noisystudent.embeddings.parts import Features
from noisystudent.run.rundir import EmbeddingsDir


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureSet(ImageSet):
    """A set of images of which batches have the cached features, not the pixels.

    Attributes:
        features: cached features of all rows of `index`.
        flip: True: without boxes, a row is its clean and its mirrored view.
    """

    features: Features
    flip: bool = False

    @property
    def on_gpu(self) -> bool:
        """False: nothing is decoded."""
        return False

    def at(self, resolution: int) -> ImageSet:
        """The set itself, which gives no pixels."""
        return self

    def direct(self, resolution: int, boxes: bool) -> bool:
        """True: nothing is decoded, whatever the arguments."""
        return True

    def view_sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """(B, 1) number of cached views of each image."""
        return np.full((len(rows), 1), self.features.layout.views, np.int32)

    def fetch(
        self, rows: NDArray[np.int64], resolution: int, boxes: NDArray[np.float32] | None = None
    ) -> Tensor:
        """Features of some rows.

        Args:
            rows: (B,) rows of this set.
            resolution: not read.
            boxes: (B, 1) number of the view of each row, in place of a crop box. None: the clean view.

        Returns:
            (B, F) float32; without boxes and with `flip` (B, 2, F).
        """
        at = self._index_rows(rows)
        if boxes is not None:
            return self.features(at, boxes[:, 0].astype(np.int64))
        clean = self.features(at)
        return torch.stack([clean, self.features(at, 1)], dim=1) if self.flip else clean


def with_features(dataset: Dataset, cache: EmbeddingsDir) -> Dataset:
    """Return the same sets with the features in `cache`. That of a linear probe has none of the pool.

    Raises:
        RunError: features are missing.
    """

    def cached(images: ImageSet) -> FeatureSet:
        own = {field.name: getattr(images, field.name) for field in fields(ImageSet)}
        return FeatureSet(**own, features=Features(cache.features(images.name)))

    test = None if dataset.test is None else cached(dataset.test)
    pool = dataset.pool
    return replace(
        dataset,
        labeled=cached(dataset.labeled),
        val=cached(dataset.val),
        test=test,
        pool=cached(pool) if cache.features(pool.name).path.is_dir() else pool,
    )
