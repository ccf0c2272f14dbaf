"""Evaluate on ImageNet-A and -R (restricted to their 200 classes), V2, Sketch, and with ReaL's labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet
from noisystudent.errors import InputError
from noisystudent.evaluation.published import beside, folder_of
from noisystudent.evaluation.rows import Row, mean_row, published_rows
from noisystudent.inference.images import Labeled, open_labeled, scanned, stored_side, watched
from noisystudent.inference.predictor import Predictor, predict_probs
from noisystudent.metrics import classification
from noisystudent.robustness import imagenet, summary

SETS = ("a", "r", "v2", "sketch", "real")
_FOLDERS = {"a": "imagenet-a", "r": "imagenet-r", "v2": "imagenetv2*", "sketch": "*sketch*", "real": "val"}
_MATCHED = "matched"  # part of the name of the V2 set that others publish; the three V2 sets have equal sizes


def check(predictor: Predictor, test: str) -> None:
    """Check that the model can be evaluated on ImageNet's test sets.

    Raises:
        InputError: the model's classes are not ImageNet's 1000 classes.
    """
    if predictor.classes != imagenet.imagenet_classes():
        raise InputError(
            f"--tests has {test}, which needs a model of ImageNet's 1000 classes; this model has"
            f" {predictor.num_classes} classes"
        )


def measure(
    predictor: Predictor, data: Labeled, test: str, real_labels: Path | None, progress: Progress
) -> Iterator[Row]:
    """Yield top-1 on one of `SETS`; on -A and -R also the calibration error among their classes.

    On -R, if `data` has a folder `val`, also top-1 on the same classes of `val`, and the difference.

    Args:
        predictor: the model.
        data: the images of the set, or a folder that has the set as a subfolder.
        test: one of `SETS`.
        real_labels: ReaL's JSON file; None: the copy in timm.
        progress: shows the progress.

    Raises:
        InputError: as in `check`, or the folders are not those of the set.
    """
    check(predictor, test)
    source = _images_of(data, test)
    numbers: Callable[[Sequence[str]], NDArray[np.int64]] = partial(imagenet.imagenet_labels, test)
    with scanned(open_labeled(source), numbers, progress, stored=stored_side(predictor)) as (images, bad):
        for name, reason in bad:
            progress.say(f"{name}: {reason}; left out")
        rows = np.arange(len(images))
        if test == "real":
            yield from _real(predictor, images, rows, real_labels, progress)
            return
        kept = imagenet.subset(test) if test in ("a", "r") else None
        probs = _probs(predictor, images, rows, kept, task=test, progress=progress)
        hits = classification.correct(probs, images.labels)
        yield _top1(test, hits)
        if kept is not None:
            yield Row(test, "rms calibration error", classification.rms_calibration(probs, images.labels))
            yield Row(test, "aurra", classification.aurra(probs, images.labels))
    if test == "r":
        yield from _gap(predictor, data, float(hits.mean()), progress)
    root = folder_of(source)
    if test != "v2" or (root is not None and _MATCHED in root.name):
        yield from published_rows(test, "center-crop", len(hits))


def _probs(
    predictor: Predictor,
    images: ImageSet,
    rows: NDArray[np.int64],
    kept: imagenet.Subset | None,
    *,
    task: str,
    progress: Progress,
) -> NDArray[np.float32]:
    """(N, C) probabilities of `rows`, restricted to the kept classes (None: all classes)."""

    model, _ = predictor.prepared(len(rows), progress=progress)

    def predict(pixels: Tensor) -> Tensor:
        logits = model(pixels)
        return logits if kept is None else imagenet.restrict(logits, kept)

    batches = watched(model.views(images, rows), task, len(rows), progress)
    return predict_probs(predict, batches)


def _gap(predictor: Predictor, data: Labeled, top1: float, progress: Progress) -> Iterator[Row]:
    """Top-1 on the images of val with ImageNet-R's classes, and its difference to `top1` on ImageNet-R.

    Both are restricted to the same classes, so the gap is not caused by different classes.
    """
    val = beside(data)
    if val is data:
        return
    kept = imagenet.subset("r")
    numbers: Callable[[Sequence[str]], NDArray[np.int64]] = partial(imagenet.imagenet_labels, "val")
    with scanned(open_labeled(val), numbers, progress, stored=stored_side(predictor)) as (images, _):
        labels = imagenet.subset_labels(images.labels, kept)
        rows = np.flatnonzero(labels >= 0)
        if len(rows) == 0:
            return
        probs = _probs(predictor, images, rows, kept, task="r, val", progress=progress)
        mean = summary.mean(classification.correct(probs, labels[rows]))
    note = f"{len(rows):,} images"
    yield mean_row("r", "top1 on the same classes of val", mean, note)
    yield Row("r", "gap to val", mean["value"] - top1, note="val minus ImageNet-R, of the same 200 classes")


def _real(
    predictor: Predictor,
    images: ImageSet,
    rows: NDArray[np.int64],
    real_labels: Path | None,
    progress: Progress,
) -> Iterator[Row]:
    if real_labels is None:
        with as_file(files("timm") / "data" / "_info" / "imagenet_real_labels.json") as path:
            sets = imagenet.read_real_labels(path)
    else:
        sets = imagenet.read_real_labels(real_labels)
    image_labels = imagenet.real_labels_of(images.ids(rows), sets)
    probs = _probs(predictor, images, rows, None, task="real", progress=progress)
    accuracy = classification.real_accuracy(probs.argmax(axis=1), image_labels)
    yield Row("real", "accuracy", accuracy, note=f"{len(rows):,} images")
    yield from published_rows("real", "center-crop", len(rows))


def _top1(test: str, hits: NDArray[np.bool_]) -> Row:
    return mean_row(test, "top1", summary.mean(hits), f"{len(hits):,} images")


def _images_of(data: Labeled, test: str) -> Labeled:
    """The subfolder of `data` with this set; `data` itself if there is none."""
    root = folder_of(data)
    folders = [] if root is None else sorted(path for path in root.glob(_FOLDERS[test]) if path.is_dir())
    return folders[0] if folders else data
