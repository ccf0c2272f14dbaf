"""A trained model on labelled images: accuracy, calibration, corruptions, perturbations, attacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import InputError
from noisystudent.evaluate import columns, metrics, suite
from noisystudent.evaluate.answers import Answers, stratified
from noisystudent.evaluate.attacks import WARNING
from noisystudent.evaluate.columns import Column
from noisystudent.evaluate.corruptions import column as constants_column
from noisystudent.evaluate.corruptions import find_frost
from noisystudent.evaluate.pictures import Pictures, generated, remembered
from noisystudent.evaluate.robustness import CORRUPTIONS
from noisystudent.evaluate.stress import TESTS, Plan, Subject, stress
from noisystudent.evaluate.subsets import imagenet_classes
from noisystudent.inference import imagenet, published
from noisystudent.inference.images import Labeled, class_numbers, open_labeled, scanned, stored_side, views
from noisystudent.inference.loading import Predictor
from noisystudent.inference.rows import Row
from noisystudent.models.registry import Classifier
from noisystudent.runtime import Silent, StopFlag, Voice

ALL, FAST_SEVERITIES, FAST_IMAGES = (1, 2, 3, 4, 5), (1, 3, 5), 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is asked of `measure`.

    Attributes:
        tests: some of `stress.TESTS` and `imagenet.SETS`.
        fast: severities 1, 3 and 5 on a stratified sample of 1,000 images.
        frost: folder of the photographs for the corruption frost.
        real_labels: ReaL's JSON file.
        seed: of everything random.
    """

    tests: tuple[str, ...] = ("clean",)
    fast: bool = False
    frost: Path | None = None
    real_labels: Path | None = None
    seed: int = 0


def measure(
    predictor: Predictor,
    data: Labeled,
    asked: Asked,
    *,
    stop: StopFlag | None = None,
    voice: Voice | None = None,
) -> Iterator[Row]:
    """The numbers of a model, as soon as each test is done, so that an error in a later one loses none.

    `data` is one labelled set, or a folder of the published ones: `val`, the clean images, `imagenet-a`,
    `imagenet-r`, `imagenetv2`, `sketch`, and, in the place of generated images, `imagenet-c`, `imagenet-p`,
    `cifar-10-c`, `cifar-100-c` and `cifar-10-p`.

    Raises:
        InputError: an unknown test, a class the model has not, or an attack on a model without gradients.
    """
    for test in asked.tests:
        if test not in (*TESTS, *imagenet.SETS):
            raise InputError(f"--tests has {test!r}; choose of {', '.join((*TESTS, *imagenet.SETS))}")
    voice, stop = voice or Silent(), stop or StopFlag()
    tests = [test for test in TESTS if test in asked.tests]
    if tests:
        with _pictures(predictor, data, asked, stop, voice) as (pictures, notes):
            answers: dict[str, Answers] = {"model": {}}
            for test in tests:
                if test == "clean":
                    yield from _clean(predictor, pictures, answers["model"], notes[test])
                    continue
                plan = Plan(tests=(test,), severities=FAST_SEVERITIES if asked.fast else ALL, seed=asked.seed)
                progress = partial(_progress, test, stop, voice)
                stress({"model": _subject(predictor)}, pictures, plan, answers, lambda: None, progress)
                yield from _rows(test, columns.column(answers["model"]), predictor, notes[test])
    for test in asked.tests:
        if test in imagenet.SETS:
            yield from imagenet.measure(predictor, data, test, asked.real_labels, stop, voice)


def _progress(test: str, stop: StopFlag, voice: Voice, done: int, total: int) -> None:
    stop.check()
    voice.progress(test, done, total)


def _subject(predictor: Predictor) -> Subject:
    model = predictor.model
    return Subject(predictor, model if isinstance(model, Classifier) else None)


@contextmanager
def _pictures(
    predictor: Predictor, data: Labeled, asked: Asked, stop: StopFlag, voice: Voice
) -> Iterator[tuple[Pictures, dict[str, str]]]:
    """What the model is shown, and where it comes from, by test."""
    released = published.find(data, predictor)
    notes = {test: found.note for test, found in released.items()}
    if not {"clean", "calibration", "fgsm", "pgd"} & {*asked.tests} and {*asked.tests} <= {*released}:
        yield published.pictures(released), notes
        return
    numbers = partial(class_numbers, predictor.classes)
    data = published.beside(data)
    frost = find_frost(asked.frost)
    stored = None if "p" in asked.tests else stored_side(predictor)
    with scanned(open_labeled(data), numbers, stop, voice, stored=stored) as (images, bad):
        for name, reason in bad:
            voice.say(f"{name}: {reason}; left out")
        rows = stratified(images.labels, FAST_IMAGES if asked.fast else len(images), asked.seed)
        side = predictor.model.resolution
        wide = side if stored is not None or side < 224 else round(side * 256 / 224)
        clean = remembered(partial(views, predictor, images, rows), len(rows) * 3 * side * side)
        wholes = partial(views, predictor, images, rows, wide)
        made = generated(clean, wholes, images.labels[rows], seed=asked.seed, frost=frost)
        note = f"regenerated with the constants of {constants_column(side)} pixels, {len(rows):,} images"
        without = "" if frost is not None else ", without frost"
        notes = {test: f"{len(rows):,} images" for test in TESTS} | {"c": note + without, "p": note} | notes
        yield published.pictures(released, made), notes


def _clean(predictor: Predictor, pictures: Pictures, answers: Answers, note: str) -> Iterator[Row]:
    labels: list[NDArray[np.int64]] = []

    def images() -> Iterator[Tensor]:
        for batch, own in pictures.clean():
            labels.append(own)
            yield batch

    probs = suite.predict_probs(predictor, images())
    truth = np.concatenate(labels)
    answers["clean"] = metrics.correct(probs, truth)
    for name, value in suite.score(probs, truth).items():
        yield (
            _row("clean", name, columns.mean(answers["clean"]), note)
            if name == "top1"
            else Row("clean", name, value)
        )


def _rows(test: str, column: Column, predictor: Predictor, note: str) -> Iterator[Row]:
    """What one test gives, the summary first."""
    match test:
        case "calibration":
            yield from (Row(test, name, value) for name, value in column["calibration"].items())
        case "c":
            yield _row(test, "mean error", column["c"], note)
            if predictor.classes == imagenet_classes():
                found = columns.ratios(column, columns.alexnet())
                kind = "mCE" if len(column["c"]["errors"]) == len(CORRUPTIONS) else "mCE-14"
                yield Row(test, kind, found["mce"], note=f"{note}; divided by AlexNet's at 224 pixels")
            for name, errors in column["c"]["errors"].items():
                yield Row(test, f"error {name}", sum(errors.values()) / len(errors))
        case "p":
            yield _row(test, "mean flip probability", column["p"], note)
            if predictor.classes == imagenet_classes():
                value = columns.ratios(column, columns.alexnet())["mfr"]
                yield Row(test, "mFR", value, note=f"{note}; divided by AlexNet's at 224 pixels")
            yield from (Row(test, f"flips {name}", value) for name, value in column["p"]["flips"].items())
            yield from (
                Row(test, f"top-5 distance {name}", value) for name, value in column["p"]["t5d"].items()
            )
        case _:
            yield from (
                _row(test, f"top1 at {eps}/255", value, WARNING) for eps, value in column[test].items()
            )


def _row(test: str, measure: str, mean: Column, note: str = "") -> Row:
    return Row(test, measure, mean["value"], mean["low"], mean["high"], note)
