"""The network of a teacher that labels a large pool: compiled, where that pays and works."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from noisystudent.errors import first_line

Predict = Callable[[Tensor], Tensor]

WORTH_COMPILING = 500_000
"""Images from which on a fifth of the time is more than the compilation."""


def labeler(
    model: nn.Module,
    answering: Callable[[Predict], Predict],
    *,
    images: int,
    batch_size: int,
    notify: Callable[[str], None],
) -> Predict:
    """How `model` is asked about `images` images: compiled for batches of `batch_size` if they are many.

    Others, as the last one, go through the network as it is; so do all once compilation has failed.

    Args:
        model: (b, 3, S, S) uint8 -> (b, K) logits, in evaluation mode.
        answering: gives a network its device, precision and mode; called with `model` and its compiled form.
        images: how many will come.
        batch_size: of all batches but the last.
        notify: told why nothing is compiled, where it should have been.
    """
    eager = answering(model)
    if images < WORTH_COMPILING:
        return eager
    compiled: Predict | None = answering(torch.compile(model, dynamic=False))

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
