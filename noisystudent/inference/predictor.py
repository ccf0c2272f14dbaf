"""The Predictor, which computes logits and probabilities of images for every kind of model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet, View
from noisystudent.data.loader import requested_batches
from noisystudent.data.workers import worker_count
from noisystudent.errors import InputError, RunError, first_line
from noisystudent.models.classifier import Classifier
from noisystudent.models.onnx import OnnxModel
from noisystudent.records import Predict
from noisystudent.runtime import batch_size_for, on_host

WORTH_COMPILING = 500_000
"""Number of images from which a compiled forward pass saves more time than the compilation takes."""

_BATCH = 256  # largest batch size; see `batch_size_for`
Rows = NDArray[np.int64]
Boxes = Callable[[Rows], NDArray[np.float32] | None]
"""Rows of a batch -> crop windows (B, 4) as fractions of the image, or None for the clean view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A trained model, or several whose probabilities are averaged.

    Attributes:
        models: models on `device`, in evaluation mode and without noise; all have the same classes and
            resolution.
        classes: class names in the order of the outputs; empty if the model has no names.
        device: device of the models and of the images they are given.
        dtype: type of the forward pass; float32 switches autocast off. An ONNX file has a fixed type.
        flip: averages also over the mirror image of each image.
        scales: averages over the image at these multiples of the resolution.
        batch_size: images in one forward pass; None: a number that suits the resolution.
        workers: number of decoding processes; None: one for each core.
        view: transform with which the model was published; None: this package's clean view.
        side: side in pixels of the views; None: the model's resolution.
        path: file of the weights; None for weights that timm publishes.
        before: weights of the same model before its fine-tuning at a higher resolution; None: there are none.
    """

    models: tuple[Classifier | OnnxModel, ...]
    classes: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype = torch.float32
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    batch_size: int | None = None
    workers: int | None = None
    view: View | None = None
    side: int | None = None
    path: Path | None = None
    before: Path | None = None
    _compiled: tuple[Predict, ...] = ()

    @property
    def model(self) -> Classifier | OnnxModel:
        """The first model."""
        return self.models[0]

    @property
    def resolution(self) -> int:
        """Side in pixels of the images that the model is given."""
        return self.model.resolution

    @property
    def num_classes(self) -> int:
        """K, the number of outputs."""
        return self.model.num_classes

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs: the class names, or numbers if the model has no names."""
        return self.classes or tuple(map(str, range(self.num_classes)))

    @property
    def differentiable(self) -> nn.Module | None:
        """The model, if gradients with respect to its images can be computed; otherwise None.

        They cannot for an ONNX file, and an average over several models or transforms is not a single model.
        """
        single = len(self.models) == 1 and not self.flip and self.scales == (1.0,)
        return self.model if single and isinstance(self.model, nn.Module) else None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) uint8 -> logits (B, K) float32.

        Several models or transforms give logits whose softmax is the mean of their probabilities: data
        distillation (Radosavovic et al. 2018, arXiv 1712.04440).
        """
        images = images.to(self.device, non_blocking=True)
        forwards = self._compiled or self.models
        if len(forwards) == 1 and not self.flip and self.scales == (1.0,):
            return self._logits(forwards[0], images)
        views = [_resized(images, scale) for scale in self.scales]
        views += [view.flip(3) for view in views if self.flip]
        probs = [torch.softmax(self._logits(forward, view), dim=1) for forward in forwards for view in views]
        mean = torch.stack(probs).mean(0)
        # A probability can underflow to 0, whose logarithm is infinite, so it is clipped. NaN stays NaN.
        return mean.clamp(min=torch.finfo(torch.float32).tiny).log()

    def views(self, images: ImageSet, rows: Rows | None = None) -> Iterator[Tensor]:
        """Batches (B, 3, S, S) uint8 of the clean views of `rows` (None: all), in order."""
        rows = np.arange(len(images)) if rows is None else rows
        size = self.batch_size or batch_size_for(self.side or self.resolution, _BATCH)
        batches = (rows[start : start + size] for start in range(0, len(rows), size))
        yield from self.requested_views(images, batches)

    def requested_views(
        self, images: ImageSet, requests: Iterator[Rows], boxes: Boxes | None = None
    ) -> Iterator[Tensor]:
        """Batches (B, 3, S, S) uint8 of the requested rows.

        Args:
            images: the image set.
            requests: rows of each batch.
            boxes: crop windows for the rows of a batch; None: clean views.
        """
        viewed = images if self.view is None else replace(images, view=self.view)
        yield from requested_batches(
            viewed,
            requests,
            resolution=self.side or self.resolution,
            device=self.device,
            workers=worker_count(self.workers),
            boxes=boxes,
        )

    def probs(self, images: ImageSet, rows: Rows | None = None) -> NDArray[np.float32]:
        """Class probabilities (N, K) of the clean views of `rows` (None: all).

        Raises:
            InputError: no images.
            RunError: a logit is not finite.
        """
        return predict_probs(self, self.views(images, rows))

    def compiled(self, images: int, batch_size: int, progress: Progress) -> Predictor:
        """The same predictor, with compiled models if there are enough images to make up for the compilation.

        Args:
            images: number of images to predict.
            batch_size: batch size for which the models are compiled.
            progress: shows a message if the compilation fails.
        """
        if images < WORTH_COMPILING or not isinstance(self.model, nn.Module):
            return self
        return replace(self, _compiled=tuple(_Compiled(model, batch_size, progress) for model in self.models))

    def _logits(self, forward: Predict, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = forward(images)
        return logits.float()


class _Compiled:
    """A model, compiled for batches of one size.

    Batches of another size, such as the last one, use the uncompiled model: a new size would need a new
    compilation. If the compilation fails, all batches use it.
    """

    def __init__(self, model: Predict, batch_size: int, progress: Progress) -> None:
        self._model, self._batch_size, self._progress = model, batch_size, progress
        self._forward: Predict | None = torch.compile(model, dynamic=False)

    def __call__(self, images: Tensor) -> Tensor:
        if self._forward is not None and len(images) == self._batch_size:
            try:
                return self._forward(images)
            except torch.OutOfMemoryError:  # a RuntimeError, but not one of the compilation
                raise
            except RuntimeError as error:
                reason = first_line(error)
                self._progress.say(f"The teacher cannot be compiled here ({reason}); it runs uncompiled.")
                self._forward = None
        return self._model(images)


def predict_probs(predict: Predict, batches: Iterable[Tensor]) -> NDArray[np.float32]:
    """Class probabilities (N, K) of all images, in order.

    Args:
        predict: images (B, 3, S, S) uint8 -> logits (B, K) of any float type, in evaluation mode.
        batches: batches of images.

    Raises:
        InputError: no batches.
        RunError: a logit is not finite.
    """
    done: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for probs in on_host(predict(images).float().softmax(dim=1) for images in batches):
            if not np.isfinite(probs).all():  # an infinite or NaN logit makes its whole row NaN
                first = sum(map(len, done))
                raise RunError(
                    f"the model's output is not finite on images {first} to {first + len(probs) - 1};"
                    " it has diverged, train it again with a lower learning rate"
                )
            done.append(probs)
    if not done:
        raise InputError("there are no images to evaluate on")
    return np.concatenate(done)


def _resized(images: Tensor, scale: float) -> Tensor:
    """Images (B, 3, S, S) uint8, resized to `scale` times their side (bicubic with antialiasing)."""
    if scale == 1.0:
        return images
    side = max(1, round(images.shape[-1] * scale))
    resized = functional.interpolate(images.float(), (side, side), mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)
