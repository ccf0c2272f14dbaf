"""ImageNet's other test sets: -A and -R among their own 200 classes, V2, Sketch, and ReaL's label sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisystudent.data.imageset import ImageSet
from noisystudent.errors import InputError
from noisystudent.evaluate import anchors, columns, metrics, subsets, suite
from noisystudent.inference.images import Labeled, open_labeled, scanned, stored_side, views
from noisystudent.inference.loading import Predictor
from noisystudent.inference.published import folder_of
from noisystudent.inference.rows import Row
from noisystudent.runtime import StopFlag, Voice

SETS = ("a", "r", "v2", "sketch", "real")
_FOLDERS = {"a": "imagenet-a", "r": "imagenet-r", "v2": "imagenetv2*", "sketch": "sketch*", "real": "val"}
_SIZES = {"a": 7_500, "r": 30_000, "v2": 10_000, "sketch": 50_889, "real": 50_000}
"""Images of the whole sets: a figure stands beside published ones only if it is of all of them."""


def measure(
    predictor: Predictor, data: Labeled, test: str, real_labels: Path | None, stop: StopFlag, voice: Voice
) -> Iterator[Row]:
    """Top-1 on one of `SETS`; on -A and -R also the calibration among their classes.

    Raises:
        InputError: the model is not of ImageNet's 1000 classes, or the folders are not those of the set.
    """
    if predictor.classes != subsets.imagenet_classes():
        raise InputError(
            f"--tests has {test}, which needs a model of ImageNet's 1000 classes; this one has"
            f" {predictor.model.num_classes}"
        )
    place = _place(data, test)
    numbers: Callable[[Sequence[str]], NDArray[np.int64]] = partial(subsets.imagenet_labels, test)
    with scanned(open_labeled(place), numbers, stop, voice, stored=stored_side(predictor)) as (images, bad):
        for name, reason in bad:
            voice.say(f"{name}: {reason}; left out")
        rows = np.arange(len(images))
        batches = views(predictor, images, rows)
        if test == "real":
            yield from _real(predictor, images, rows, real_labels)
            return
        kept = subsets.subset(test) if test in ("a", "r") else None

        def predict(pixels: object) -> object:
            logits = predictor(pixels)  # type: ignore[arg-type]
            return logits if kept is None else subsets.restrict(logits, kept)

        probs = suite.predict_probs(predict, batches)  # type: ignore[arg-type]
        hits = metrics.correct(probs, images.labels)
        yield _top1(test, hits)
        if kept is not None:
            yield Row(test, "rms calibration error", metrics.rms_calibration(probs, images.labels))
            yield Row(test, "aurra", metrics.aurra(probs, images.labels))
        yield from _others(test, len(images))


def _real(
    predictor: Predictor, images: ImageSet, rows: NDArray[np.int64], real_labels: Path | None
) -> Iterator[Row]:
    said = suite.predict_probs(predictor, views(predictor, images, rows)).argmax(axis=1)
    if real_labels is None:
        with as_file(files("timm") / "data" / "_info" / "imagenet_real_labels.json") as path:
            sets = subsets.read_real_labels(path)
    else:
        sets = subsets.read_real_labels(real_labels)
    own = subsets.real_labels_of(images.ids(rows), sets)
    yield Row("real", "accuracy", metrics.real_accuracy(said, own), note=f"{len(rows):,} images")
    yield from _others("real", len(rows))


def _top1(test: str, hits: NDArray[np.bool_]) -> Row:
    mean = columns.mean(hits)
    return Row(test, "top1", mean["value"], mean["low"], mean["high"], f"{len(hits):,} images")


def _others(test: str, images: int) -> Iterator[Row]:
    """What others published of the same set."""
    if images == _SIZES[test]:
        for anchor in anchors.find(test, "center-crop"):
            yield Row(test, f"{anchor.measure} of {anchor.model}", anchor.value, note=anchor.source)


def _place(data: Labeled, test: str) -> Labeled:
    """The folder of that set in `data`, or `data`."""
    root = folder_of(data)
    found = [] if root is None else sorted(path for path in root.glob(_FOLDERS[test]) if path.is_dir())
    return found[0] if found else data
