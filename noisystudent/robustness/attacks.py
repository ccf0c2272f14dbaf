"""Adversarial images within a bound on every pixel value: FGSM and PGD, untargeted, against the true label.

Pixel values run from 0 to 255 and bounds use the same unit: an eps of 8 here is written 8/255 in papers.
The model itself subtracts the mean and divides by the deviation, so both attacks work on images before
normalisation. Neither attack changes the model.
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
from noisystudent.metrics.classification import check_range
from noisystudent.runtime import generator

Logits = Callable[[Tensor], Tensor]

# Xie et al. 2020, section 3.4. The paper does not give the step size of its PGD; `pgd` uses 2.5 eps / steps.
FGSM_SWEEP = (2.0, 4.0, 8.0, 16.0)
PGD_STEPS = 10
PGD_EPS = 16.0

WARNING = (
    "FGSM and PGD are weak attacks: accuracy under them shows how a model fails, not that it is robust. "
    "A stronger or adaptive attack can only lower it."
)


class RandomStart(NamedTuple):
    """Start of PGD at a uniform random point within the bound, a pure function of seed and row.

    Attributes:
        seed: seed of the run.
        rows: (B,) row of each image in its data set. The draw depends on the row, not on the place in the
            batch, so batching does not change it.
    """

    seed: int
    rows: Sequence[int]


def fgsm_sweep(
    logits: Logits, images: Tensor, labels: Tensor, sweep: Sequence[float] = FGSM_SWEEP
) -> list[Tensor]:
    """Fast gradient sign method: one step along the sign of the loss's gradient (Goodfellow et al. 2015).

    The gradient is computed once and used for every eps of the sweep.

    Args:
        logits: (B, 3, S, S) float32 pixels in 0 to 255 -> (B, K), differentiable and in evaluation mode.
        images: (B, 3, S, S) uint8, or floating-point pixels in 0 to 255.
        labels: (B,) integers in 0 to K-1, on the images' device.
        sweep: step sizes eps, each the largest change of a pixel value in units of 1/255.

    Returns:
        For each eps (B, 3, S, S) float32 in 0 to 255, at most eps from the images; eps 0 gives the images.

    Raises:
        InputError: a model in training mode or without gradients, a negative eps, or labels out of range.
    """
    for eps in sweep:
        _check_eps(eps)
    pixels = _pixels(images)
    direction = _gradient_sign(logits, pixels, labels)
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
    """Projected gradient descent: several gradient sign steps within the bound (Madry et al. 2018).

    After each step the pixels are clipped to the bound around the images and to the range 0 to 255.

    Args:
        logits: as in `fgsm_sweep`.
        images: as in `fgsm_sweep`.
        labels: as in `fgsm_sweep`.
        eps: largest change of a pixel value, in units of 1/255.
        steps: number of gradients computed; one step of size eps without random start equals FGSM.
        step_size: in units of 1/255; None: 2.5 eps / steps.
        random_start: starts at a random point within the bound; None: starts at the images.

    Returns:
        (B, 3, S, S) float32 in 0 to 255, at most eps from the images.

    Raises:
        InputError: as in `fgsm_sweep`, or no steps, a step size that is not positive, or rows that do not
            match.
    """
    _check_eps(eps)
    if steps < 1:
        raise InputError(f"the number of PGD steps is {steps}; it must be at least 1")
    if step_size is not None and not 0 < step_size < math.inf:
        raise InputError(f"the step size of PGD is {step_size}; it must be a positive number, in 1/255")
    # The total length of the steps is 2.5 eps: the edge of the bound can be reached from any start within it.
    step = 2.5 * eps / steps if step_size is None else step_size
    pixels = _pixels(images)
    low, high = (pixels - eps).clamp(min=0), (pixels + eps).clamp(max=255)
    attacked = pixels if random_start is None else _moved(pixels, eps, random_start).clamp(low, high)
    for index in range(steps):
        direction = _gradient_sign(logits, attacked, labels, check=index == 0)
        attacked = (attacked + step * direction).clamp(low, high)
    return attacked


@contextmanager
def fp32(device: torch.device) -> Iterator[None]:
    """Context manager for full float32 precision: no autocast, and on a GPU no TF32.

    By default PyTorch lets cuDNN use TF32 for convolutions, and its rounding can flip the sign of a gradient.
    `resolve_device` switches it off for a whole run; other callers may not have called it.
    """
    cudnn: Any = torch.backends.cudnn  # torch does not declare its parts
    backends: tuple[Any, ...] = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _pixels(images: Tensor) -> Tensor:
    """A float32 copy that gradients can pass through, also if the caller is in inference mode."""
    with torch.inference_mode(False):
        return images.detach().to(torch.float32, copy=True)


def _gradient_sign(logits: Logits, pixels: Tensor, labels: Tensor, *, check: bool = True) -> Tensor:
    """(B, 3, S, S) sign of the gradient of each image's cross-entropy: -1, 0 or 1.

    `check` compares the labels with the number of classes, for which the host waits for the device.
    """
    if isinstance(logits, nn.Module) and logits.training:
        raise InputError("the model is in training mode; call model.eval() before the attack")
    with torch.inference_mode(False), torch.enable_grad(), fp32(pixels.device):
        images = pixels.clone().requires_grad_()
        output = logits(images)
        if not output.requires_grad:
            raise InputError(_NO_GRADIENT)
        if check:
            _check_labels(labels, output)
        # A sum, not a mean: the gradient of an image must not become smaller in a larger batch.
        loss = functional.cross_entropy(output.float(), labels.long().clone(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images, allow_unused=True)
    if gradient is None:
        raise InputError(_NO_GRADIENT)
    return gradient.sign()


_NO_GRADIENT = (
    "the model has no gradient with respect to its images (an ONNX file never has); "
    "FGSM and PGD need a PyTorch model"
)


def _moved(pixels: Tensor, eps: float, start: RandomStart) -> Tensor:
    """Pixels plus uniform noise in -eps to eps, drawn on the CPU so that it is the same on every device."""
    if len(start.rows) != len(pixels):
        raise InputError(
            f"the random start has {len(start.rows)} rows for {len(pixels)} images; give one each"
        )
    shape = tuple(pixels.shape[1:])
    draws = [generator(start.seed, "pgd", row).random(shape, dtype=np.float32) for row in start.rows]
    return pixels + eps * (2 * torch.from_numpy(np.stack(draws)).to(pixels.device) - 1)


def _check_eps(eps: float) -> None:
    if not 0 <= eps < math.inf:
        raise InputError(f"eps is {eps}; it must be 0 or more, in units of 1/255")


def _check_labels(labels: Tensor, output: Tensor) -> None:
    if output.ndim != 2 or labels.shape != output.shape[:1]:
        raise InputError(
            f"logits have shape {tuple(output.shape)} and labels {tuple(labels.shape)};"
            " the shapes must be (B, K) and (B,)"
        )
    least, most = torch.stack(torch.aminmax(labels)).tolist()
    check_range(least, most, output.shape[1])
