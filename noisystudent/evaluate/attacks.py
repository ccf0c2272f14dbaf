"""Adversarial images within a bound on every pixel value: FGSM and PGD, untargeted, against the true label.

Pixels run from 0 to 255 and bounds count in the same unit: an eps of 8 is the 8/255 of papers. Mean and
deviation are the model's own business, so both attacks work before normalization. Neither changes the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from noisystudent.errors import InputError
from noisystudent.runtime import generator

Logits = Callable[[Tensor], Tensor]

# Xie et al. 2020, section 3.4. Their PGD step size is not given.
FGSM_SWEEP = (2.0, 4.0, 8.0, 16.0)
PGD_STEPS = 10
PGD_EPS = 16.0

WARNING = (
    "FGSM and PGD are weak attacks: accuracy under them shows how a model fails, not that it is robust. "
    "A stronger or adaptive attack can only lower it."
)


class RandomStart(NamedTuple):
    """Where PGD begins: a uniform draw within the bound, a pure function of seed and row.

    Attributes:
        seed: of the run.
        rows: (B,) the images' rows in their data set, so that batching does not change their draw.
    """

    seed: int
    rows: Sequence[int]


def fgsm(logits: Logits, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """One step of eps along the sign of the loss's gradient (Goodfellow et al. 2015).

    Args:
        logits: (B, 3, S, S) float32 pixels in 0 to 255 -> (B, K), differentiable and in evaluation mode.
        images: (B, 3, S, S) uint8, or floating pixels in 0 to 255.
        labels: (B,) integers in 0 to K-1, on the images' device.
        eps: largest change of a pixel value, in 255ths.

    Returns:
        (B, 3, S, S) float32 in 0 to 255, at most eps from the images; eps 0 gives the images.

    Raises:
        InputError: a model in training mode or without gradients, a negative eps, or labels out of range.
    """
    return fgsm_sweep(logits, images, labels, (eps,))[0]


def fgsm_sweep(
    logits: Logits, images: Tensor, labels: Tensor, sweep: Sequence[float] = FGSM_SWEEP
) -> list[Tensor]:
    """`fgsm` at every eps of the sweep, for the price of one gradient."""
    for eps in sweep:
        _check_eps(eps)
    pixels = _pixels(images)
    direction = _ascent(logits, pixels, labels)
    return [(pixels + eps * direction).clamp(0, 255) for eps in sweep]


def pgd(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    eps: float,
    steps: int = PGD_STEPS,
    *,
    step_size: float | None = None,
    random_start: RandomStart | None = None,
) -> Tensor:
    """Steps along the gradient's sign, each put back into the bound and the range (Madry et al. 2018).

    Args:
        logits: as of `fgsm`.
        images: as of `fgsm`.
        labels: as of `fgsm`.
        eps: largest change of a pixel value, in 255ths.
        steps: gradients taken; one step of size eps from the images themselves is `fgsm`.
        step_size: in 255ths; 2.5 eps / steps unless given.
        random_start: begin anywhere within the bound, instead of at the images.

    Returns:
        (B, 3, S, S) float32 in 0 to 255, at most eps from the images.

    Raises:
        InputError: as of `fgsm`, or no steps, a step size that is not positive, or rows that do not match.
    """
    _check_eps(eps)
    if steps < 1:
        raise InputError(f"PGD is asked for {steps} steps; at least 1 is needed")
    if step_size is not None and not 0 < step_size < math.inf:
        raise InputError(f"the step size of PGD is {step_size}; a positive number of 255ths is needed")
    step = 2.5 * eps / steps if step_size is None else step_size
    pixels = _pixels(images)
    low, high = (pixels - eps).clamp(min=0), (pixels + eps).clamp(max=255)
    found = pixels if random_start is None else _moved(pixels, eps, random_start).clamp(low, high)
    for _ in range(steps):
        found = (found + step * _ascent(logits, found, labels)).clamp(low, high)
    return found


@contextmanager
def fp32(device: torch.device) -> Iterator[None]:
    """No rounding to fewer bits within: no autocast, and on a GPU no TF32, which cuDNN takes unasked."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def _pixels(images: Tensor) -> Tensor:
    """A float32 copy that gradients may pass through, whatever mode the caller is in."""
    with torch.inference_mode(False):
        return images.detach().to(torch.float32, copy=True)


def _ascent(logits: Logits, pixels: Tensor, labels: Tensor) -> Tensor:
    """Sign of the gradient of each image's own cross-entropy: -1, 0 or 1."""
    if isinstance(logits, nn.Module) and logits.training:
        raise InputError("the model is in training mode; attack it in evaluation mode")
    with torch.inference_mode(False), torch.enable_grad(), fp32(pixels.device):
        images = pixels.clone().requires_grad_()
        output = logits(images)
        if not output.requires_grad:
            raise InputError(_NO_GRADIENT)
        _check_labels(labels, output)
        # A sum, so that an image's gradient does not shrink with the batch.
        loss = functional.cross_entropy(output.float(), labels.long().clone(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images, allow_unused=True)
    if gradient is None:
        raise InputError(_NO_GRADIENT)
    return gradient.sign()


_NO_GRADIENT = (
    "the model gives no gradient with respect to its images, as an ONNX file never does; "
    "FGSM and PGD need a PyTorch model"
)


def _moved(pixels: Tensor, eps: float, start: RandomStart) -> Tensor:
    if len(start.rows) != len(pixels):
        raise InputError(f"the random start has {len(start.rows)} rows for {len(pixels)} images")
    shape = tuple(pixels.shape[1:])
    draws = [generator(start.seed, "pgd", row).random(shape, dtype=np.float32) for row in start.rows]
    return pixels + eps * (2 * torch.from_numpy(np.stack(draws)).to(pixels.device) - 1)


def _check_eps(eps: float) -> None:
    if not 0 <= eps < math.inf:
        raise InputError(f"eps is {eps}; a number of 255ths, 0 or more, is needed")


def _check_labels(labels: Tensor, output: Tensor) -> None:
    if output.ndim != 2 or labels.shape != output.shape[:1]:
        raise InputError(
            f"logits are {tuple(output.shape)} and labels {tuple(labels.shape)}; (B, K) and (B,) are needed"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= output.shape[1]:
        raise InputError(
            f"labels run from {low} to {high}; with {output.shape[1]} classes they lie in 0 to K-1"
        )
