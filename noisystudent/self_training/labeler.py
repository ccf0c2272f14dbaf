"""The network of a teacher that labels a large pool: compiled, where that pays and works."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from noisystudent.errors import first_line
from noisystudent.models.registry import Classifier
from noisystudent.self_training import learner
from noisystudent.self_training.learner import Lesson, Predict

WORTH_COMPILING = 500_000
"""Images from which on a fifth of the time is more than the compilation."""


def labeler(
    model: Classifier, lesson: Lesson, images: int, batch_size: int, notify: Callable[[str], None]
) -> Predict:
    """As `learner.predictor`, but batches of `batch_size` go through a compiled network if `images` are many.

    Others, as the last one, go through the network as it is; so do all once compilation has failed.

    Args:
        model: of the lesson, loaded.
        lesson: `train.execution` eager forbids compilation.
        images: how many will come.
        batch_size: of all batches but the last.
        notify: told why nothing is compiled, where it should have been.
    """
    eager = learner.predictor(model, lesson)
    if images < WORTH_COMPILING or lesson.learner.train.execution == "eager":
        return eager
    compiled: Predict | None = learner.predictor(torch.compile(model, dynamic=False), lesson)

    def predict(batch: Tensor) -> Tensor:
        nonlocal compiled
        if compiled is not None and len(batch) == batch_size:
            try:
                return compiled(batch)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                notify(
                    f"the labelling network cannot be compiled here ({first_line(error)}); it runs as it is"
                )
                compiled = None
        return eager(batch)

    return predict
