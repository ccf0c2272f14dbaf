"""The Predictor, which computes logits and probabilities of images for every kind of model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet, View
from noisystudent.data.loader import requested_batches
from noisystudent.data.workers import worker_count
from noisystudent.distributed import group
from noisystudent.errors import InputError, RunError
from noisystudent.inference import forms
from noisystudent.models.classifier import Classifier
from noisystudent.models.heads import Head
from noisystudent.models.onnx import OnnxModel
from noisystudent.records import Predict
from noisystudent.runtime import batch_size_for, on_host

_BATCH = 256  # largest batch size; see `batch_size_for`
Rows = NDArray[np.int64]
Boxes = Callable[[Rows], NDArray[np.float32] | None]
"""Rows of a batch -> crop windows (B, 4) as fractions of the image, or None for the clean view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A trained model, or several whose probabilities are averaged.

    Attributes:
        models: models on `device`, in evaluation mode and without noise; all have the same classes and
            resolution. A `Head` is given features in place of images, see `FeatureSet`.
        classes: class names in the order of the outputs; empty if the model has no names.
        device: device of the models and of the images they are given.
        dtype: type of the forward pass; float32 switches autocast off. An ONNX file has a fixed type.
        flip: averages also over the mirror image of each image.
        scales: averages over the image at these multiples of the resolution.
        temperature: the logits are divided by it, after averaging, so that it changes no class.
        batch_size: images in one forward pass; None: a number that suits the resolution.
        workers: number of decoding processes; None: one for each core.
        view: transform with which the model was published; None: this package's clean view.
        side: side in pixels of the views; None: the model's resolution.
        path: file of the weights; None for weights that timm publishes.
        before: weights of the same model before its fine-tuning at a higher resolution; None: there are none.
        eager: True: `prepared` changes nothing.
    """

    models: tuple[Classifier | OnnxModel | Head, ...]
    classes: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype = torch.float32
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    temperature: float = 1.0
    batch_size: int | None = None
    workers: int | None = None
    view: View | None = None
    side: int | None = None
    path: Path | None = None
    before: Path | None = None
    eager: bool = False
    # Not an argument, so that a copy with other attributes does not keep it.
    _forward: forms.Forward | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def model(self) -> Classifier | OnnxModel | Head:
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

        Its logits are those at temperature 1. Gradients cannot be computed for an ONNX file, and an average
        over several models or transforms is not a single model.
        """
        single = len(self.models) == 1 and not self.flip and self.scales == (1.0,)
        return self.model if single and isinstance(self.model, nn.Module) else None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) uint8 -> logits (B, K) float32.

        Several models or transforms give logits whose softmax is the mean of their probabilities, data
        distillation (Radosavovic et al. 2018, arXiv 1712.04440), and whose logsumexp is the mean of theirs.
        """
        images = images.to(self.device, non_blocking=True)
        return self._eager(images) if self._forward is None else self._forward(images)

    def _eager(self, images: Tensor) -> Tensor:
        logits = self._averaged(images)
        return logits if self.temperature == 1 else logits / self.temperature

    def _averaged(self, images: Tensor) -> Tensor:
        if len(self.models) == 1 and not self.flip and self.scales == (1.0,):
            return self._logits(self.models[0], images)
        if images.ndim == 3:  # cached features of several views
            views = list(images.unbind(1))
        else:
            views = [_resized(images, scale) for scale in self.scales]
            views += [view.flip(3) for view in views if self.flip]
        logits = torch.stack([self._logits(model, view) for model in self.models for view in views])
        # A probability can underflow to 0, whose logarithm is infinite, so it is clipped. NaN stays NaN.
        mean = logits.softmax(dim=2).mean(0).clamp(min=torch.finfo(torch.float32).tiny)
        return mean.log() + logits.logsumexp(dim=2, keepdim=True).mean(0)

    def views(self, images: ImageSet, rows: Rows | None = None) -> Iterator[Tensor]:
        """Batches (B, 3, S, S) uint8 of the clean views of `rows` (None: all), in order."""
        rows = np.arange(len(images)) if rows is None else rows
        size = self.size
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

        The processes of a run share the batches out, and all get the result.

        Raises:
            InputError: no images.
            RunError: a logit is not finite.
        """
        return self._shared(predict_probs, images, rows)

    def energies(self, images: ImageSet) -> NDArray[np.float32]:
        """Energies (N,) of the clean views of all images: the logsumexp of their logits; shared as `probs`.

        Raises:
            InputError: no images.
        """
        return self._shared(_predict_energies, images, None)

    def _shared(
        self,
        predicted: Callable[[Predict, Iterable[Tensor]], NDArray[np.float32]],
        images: ImageSet,
        rows: Rows | None,
    ) -> NDArray[np.float32]:
        rows, everyone = np.arange(len(images)) if rows is None else rows, group()
        # All divide the rows in one way, although each GPU may have measured another size.
        size, count = min(everyone.gather(self.size)), len(rows)
        places = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
        own = [*everyone.own(places)]
        if len(own) < -(-len(places) // everyone.size):
            own.append(places[-1])  # as many batches as process 0: all compute a sharded model together
        done = predicted(self, self.requested_views(images, (rows[place] for place in own)))
        if everyone.size == 1:
            return done
        joined = np.empty((count, *done.shape[1:]), done.dtype)
        for place, part in everyone.gather((np.concatenate(own), done)):
            joined[place] = part
        return joined

    def prepared(self, images: int, most: int | None = None, *, progress: Progress) -> tuple[Predictor, int]:
        """Return the same predictor in the form that is fastest for a number of images, and its batch size.

        On a CPU it is compiled for many images, otherwise nothing changes. On a GPU, unless there are few
        images, the batch size is doubled as long as that gives more images per second, and the forward pass
        is captured as a CUDA graph; it is compiled as well if that saves time. Other forms and sizes change
        the last digits of the logits.

        Args:
            images: number of images to predict.
            most: largest batch size on a GPU, unless `batch_size` is larger. None: no limit.
            progress: shows the batch size on a GPU, and a message if a form fails.
        """
        size, seconds, on_gpu = self.size, None, self.device.type == "cuda"
        few = on_gpu and images < forms.MEASURED_BATCHES * size
        # What was measured may differ at the next call, and results with it.
        fixed = self.eager or (on_gpu and torch.are_deterministic_algorithms_enabled())
        if fixed or few or not isinstance(self.model, nn.Module):
            return replace(self, batch_size=size), size
        if on_gpu:
            side = self.side or self.resolution
            limit = min(forms.most_images(images, side), images if most is None else most)
            measure = partial(forms.seconds_on_gpu, self, self.device, side)
            size, seconds = forms.fastest_batch_size(measure, size, limit)
            progress.say(f"{self.model.name}: batches of {size:,} images, {1 / seconds:,.0f} images/s.")
        ways: dict[str, Predict] = {"eager": self._eager}
        if forms.worth_compiling(images, seconds):
            compiled: Any = tuple(torch.compile(model, dynamic=False) for model in self.models)
            ways = {"compiled": replace(self, models=compiled)._eager, **ways}
        if on_gpu:
            ways = forms.captured(ways, size)
        ready = replace(self, batch_size=size)
        object.__setattr__(ready, "_forward", forms.Forward(ways, size, progress))
        return ready, size

    @property
    def size(self) -> int:
        """Images in one forward pass, unless another number is measured."""
        return self.batch_size or self._fitting(_BATCH)

    def limited(self, most: int) -> Predictor:
        """Return the same predictor with batches of `most` images, or of fewer if the images are large."""
        return replace(self, batch_size=self._fitting(most))

    def _fitting(self, most: int) -> int:
        if isinstance(self.model, Head):  # its images are features
            return most
        return batch_size_for(self.side or self.resolution, most, self.device)

    def _logits(self, model: Predict, images: Tensor) -> Tensor:
        # Without the cache, in which a graph would find casts of weights that are freed when it is replayed.
        # Each weight is used once, so the cache saves nothing.
        enabled = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=enabled, cache_enabled=False):
            return model(images).float()


def predict_probs(predict: Predict, batches: Iterable[Tensor]) -> NDArray[np.float32]:
    """Class probabilities (N, K) of all images, in order.

    Args:
        predict: images (B, 3, S, S) uint8 -> logits (B, K) of any float type, in evaluation mode.
        batches: batches of images.

    Raises:
        InputError: no batches.
        RunError: a logit is not finite.
    """
    return _predicted(predict, batches, partial(torch.softmax, dim=1))


def _predict_energies(predict: Predict, batches: Iterable[Tensor]) -> NDArray[np.float32]:
    """Energies (N,) of all images, in order; the errors are those of `predict_probs`."""
    return _predicted(predict, batches, partial(torch.logsumexp, dim=1))


def _predicted(
    predict: Predict, batches: Iterable[Tensor], of: Callable[[Tensor], Tensor]
) -> NDArray[np.float32]:
    """What `of` makes of the logits of all images, in order."""
    done: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for values in on_host(of(predict(images).float()) for images in batches):
            if not np.isfinite(values).all():  # an infinite or NaN logit makes its whole row NaN
                first = sum(map(len, done))
                raise RunError(
                    f"the model's output is not finite on images {first} to {first + len(values) - 1};"
                    " it has diverged, train it again with a lower learning rate"
                )
            done.append(values)
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
