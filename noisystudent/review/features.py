"""The features that the last model computes for some images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from noisystudent.data.imageset import ImageSet
from noisystudent.models.classifier import Classifier
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
        whole = predictor(training)
        model = whole.model
        assert isinstance(model, Classifier)
        with (
            torch.inference_mode(),
            torch.autocast(whole.device.type, whole.dtype, enabled=whole.dtype != torch.float32),
        ):
            parts = [model.features(batch.to(whole.device)).cpu() for batch in whole.views(images, rows)]
        values = torch.cat(parts)
    unit: NDArray[np.float32] = torch.nn.functional.normalize(values).numpy()
    return unit
