"""The features that the last model computes for some images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from noisystudent.data.imageset import ImageSet
from noisystudent.inference.embed import embedded_batch
from noisystudent.self_training.features import FeatureSet
from noisystudent.self_training.training import Training, predictor


def features_of(training: Training, images: ImageSet, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n, F) features of the clean views of `rows`, of length 1; cached ones of a frozen backbone are read.

    Args:
        training: a finished training.
        images: one of `training.sets`.
        rows: (n,) rows of the set.
    """
    if isinstance(images, FeatureSet):
        values = images.fetch(rows, training.resolution)
    else:
        model = predictor(training)
        with torch.inference_mode():
            values = torch.cat([embedded_batch(model, batch).cpu() for batch in model.views(images, rows)])
    unit: NDArray[np.float32] = torch.nn.functional.normalize(values).numpy()
    return unit
