"""ImageNet's other test sets: -A and -R among their own 200 classes, V2, Sketch, and ReaL's label sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.data.imageset import ImageSet
from noisystudent.errors import InputError
from noisystudent.evaluate import columns, metrics, subsets, suite
from noisystudent.inference import telling
from noisystudent.inference.images import Labeled, open_labeled, scanned, stored_side, views, watched
from noisystudent.inference.loading import Predictor
from noisystudent.inference.published import beside, folder_of
from noisystudent.inference.rows import Row
from noisystudent.runtime import StopFlag, Voice

SETS = ("a", "r", "v2", "sketch", "real")
_FOLDERS = {"a": "imagenet-a", "r": "imagenet-r", "v2": "imagenetv2*", "sketch": "*sketch*", "real": "val"}
_MATCHED = "matched"  # of the three V2 sets, all of one size, the one that others publish


def check(predictor: Predictor, test: str) -> None:
    """See whether the model can be asked.

    Raises:
        InputError: it is not of ImageNet's 1000 classes.
    """
    if predictor.classes != subsets.imagenet_classes():
        raise InputError(
            f"--tests has {test}, which needs a model of ImageNet's 1000 classes; this one has"
            f" {predictor.model.num_classes}"
        )


def measure(
    predictor: Predictor, data: Labeled, test: str, real_labels: Path | None, stop: StopFlag, voice: Voice
) -> Iterator[Row]:
    """Top-1 on one of `SETS`; on -A and -R also the calibration among their classes.

    On -R also top-1 on the same classes of `val`, where `data` has it, and how much more that is.

    Raises:
        InputError: as of `check`, or the folders are not those of the set.
    """
    check(predictor, test)
    place = _place(data, test)
    numbers: Callable[[Sequence[str]], NDArray[np.int64]] = partial(subsets.imagenet_labels, test)
    with scanned(open_labeled(place), numbers, stop, voice, stored=stored_side(predictor)) as (images, bad):
        for name, reason in bad:
            voice.say(f"{name}: {reason}; left out")
        rows = np.arange(len(images))
        if test == "real":
            yield from _real(predictor, images, rows, real_labels, stop, voice)
            return
        kept = subsets.subset(test) if test in ("a", "r") else None
        probs = _probs(predictor, images, rows, kept, test, stop, voice)
        hits = metrics.correct(probs, images.labels)
        yield _top1(test, hits)
        if kept is not None:
            yield Row(test, "rms calibration error", metrics.rms_calibration(probs, images.labels))
            yield Row(test, "aurra", metrics.aurra(probs, images.labels))
    if test == "r":
        yield from _gap(predictor, data, float(hits.mean()), stop, voice)
    root = folder_of(place)
    if test != "v2" or (root is not None and _MATCHED in root.name):
        yield from telling.others(test, "center-crop", len(hits))


def _probs(
    predictor: Predictor,
    images: ImageSet,
    rows: NDArray[np.int64],
    kept: subsets.Subset | None,
    task: str,
    stop: StopFlag,
    voice: Voice,
) -> NDArray[np.float32]:
    """(N, K) of some rows, among the kept classes alone."""

    def predict(pixels: Tensor) -> Tensor:
        logits = predictor(pixels)
        return logits if kept is None else subsets.restrict(logits, kept)

    batches = watched(views(predictor, images, rows), task, len(rows), stop, voice)
    return suite.predict_probs(predict, batches)


def _gap(predictor: Predictor, data: Labeled, top1: float, stop: StopFlag, voice: Voice) -> Iterator[Row]:
    """The clean images of ImageNet-R's classes, so that the gap is not one of classes."""
    val = beside(data)
    if val is data:
        return
    kept = subsets.subset("r")
    numbers: Callable[[Sequence[str]], NDArray[np.int64]] = partial(subsets.imagenet_labels, "val")
    with scanned(open_labeled(val), numbers, stop, voice, stored=stored_side(predictor)) as (images, _):
        labels = subsets.subset_labels(images.labels, kept)
        rows = np.flatnonzero(labels >= 0)
        if len(rows) == 0:
            return
        probs = _probs(predictor, images, rows, kept, "r, val", stop, voice)
        mean = columns.mean(metrics.correct(probs, labels[rows]))
    note = f"{len(rows):,} images"
    yield telling.row("r", "top1 on the same classes of val", mean, note)
    yield Row("r", "gap to val", mean["value"] - top1, note="val minus ImageNet-R, of the same 200 classes")


def _real(
    predictor: Predictor,
    images: ImageSet,
    rows: NDArray[np.int64],
    real_labels: Path | None,
    stop: StopFlag,
    voice: Voice,
) -> Iterator[Row]:
    if real_labels is None:
        with as_file(files("timm") / "data" / "_info" / "imagenet_real_labels.json") as path:
            sets = subsets.read_real_labels(path)
    else:
        sets = subsets.read_real_labels(real_labels)
    own = subsets.real_labels_of(images.ids(rows), sets)
    said = _probs(predictor, images, rows, None, "real", stop, voice).argmax(axis=1)
    yield Row("real", "accuracy", metrics.real_accuracy(said, own), note=f"{len(rows):,} images")
    yield from telling.others("real", "center-crop", len(rows))


def _top1(test: str, hits: NDArray[np.bool_]) -> Row:
    return telling.row(test, "top1", columns.mean(hits), f"{len(hits):,} images")


def _place(data: Labeled, test: str) -> Labeled:
    """The folder of that set in `data`, or `data`."""
    root = folder_of(data)
    found = [] if root is None else sorted(path for path in root.glob(_FOLDERS[test]) if path.is_dir())
    return found[0] if found else data
