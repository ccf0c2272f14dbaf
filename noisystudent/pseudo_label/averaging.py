"""Several answers as one: an ensemble of teachers, an image and its mirror image, several scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Predict = Callable[[Tensor], Tensor]


def averaged(teachers: Sequence[Predict], *, flip: bool = False, scales: Sequence[float] = (1.0,)) -> Predict:
    """Logits whose softmax is the mean of the probabilities over teachers and transforms.

    Data distillation (Radosavovic et al. 2018, arXiv 1712.04440). One teacher without transforms is itself.

    Args:
        teachers: (b, 3, S, S) uint8 to logits (b, K), each.
        flip: also the mirror images.
        scales: multiples of S, by bicubic resizing with anti-aliasing.
    """
    if len(teachers) == 1 and not flip and tuple(scales) == (1.0,):
        return teachers[0]

    def predict(images: Tensor) -> Tensor:
        views = [_resized(images, scale) for scale in scales]
        views += [view.flip(3) for view in views if flip]
        probs = [torch.softmax(teacher(view).float(), dim=1) for teacher in teachers for view in views]
        mean = torch.stack(probs).mean(0)
        # a probability may be too small for float32, a logit must be finite; one that is not stays visible
        return mean.clamp(min=torch.finfo(torch.float32).tiny).log()

    return predict


def _resized(images: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return images
    side = max(1, round(images.shape[-1] * scale))
    wide = functional.interpolate(images.float(), (side, side), mode="bicubic", antialias=True)
    return wide.round().clamp(0, 255).to(torch.uint8)
