"""Evaluate a model on labelled images: accuracy, calibration, corruptions, perturbations and attacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.config import EvaluateConfig
from noisystudent.console import Progress
from noisystudent.errors import InputError
from noisystudent.evaluation import imagenet
from noisystudent.evaluation.options import Options
from noisystudent.evaluation.rows import Row, mean_row, part_rows, published_rows, result_rows
from noisystudent.evaluation.test_images import OpenedImages, open_test_images
from noisystudent.inference.images import Labeled, check, watched
from noisystudent.inference.load import load_predictor
from noisystudent.inference.predictor import Predictor, predict_probs
from noisystudent.metrics import classification, scores, temperature
from noisystudent.metrics.classification import Floats
from noisystudent.robustness import measures, summary
from noisystudent.robustness.corruptions import SIDES
from noisystudent.robustness.imagenet import imagenet_classes
from noisystudent.robustness.images import LabeledBatch, SuiteImages
from noisystudent.robustness.results import Results
from noisystudent.robustness.suite import TESTS, Plan, attack_batches, run_tests

_ACCURACY, _ECE_BINS = ("clean", "calibration"), EvaluateConfig().ece_bins


def measure(
    predictor: Predictor, data: Labeled, options: Options, *, progress: Progress | None = None
) -> Iterator[Row]:
    """Yield the results of a model after each test, so that an error in a later test does not lose them.

    If a test fails, the results of its finished parts are yielded before the error is raised. All results are
    at temperature 1, as published ones are. If the model has another temperature, `clean` and `calibration`
    also have rows at it, with 'calibrated' in the name of the measure.

    Args:
        predictor: the model.
        data: one labelled set, or a folder that holds published sets: `val` (the clean images), `imagenet-a`,
            `imagenet-r`, `imagenetv2`, `sketch`, and `imagenet-c`, `imagenet-p`, `cifar-10-c`, `cifar-100-c`,
            `cifar-10-p`, which replace generated images.
        options: tests to run, and their options.
        progress: shows the progress; None: nothing is shown.

    Raises:
        InputError: an unknown test, a class that is not one of the model's, or an attack on a model without
            gradients.
        Stopped: a signal was received.
    """
    fitted, predictor = predictor.temperature, replace(predictor, temperature=1.0)
    distances = _check(predictor, options)
    progress = progress or Progress()
    for model, tests, note in _models(predictor, options):
        with open_test_images(model, data, replace(options, tests=tests), progress) as opened:
            model, _ = model.prepared(opened.count, 1, progress=progress)  # for the batches that were opened
            results: Results = {}
            if accuracy := [test for test in tests if test in _ACCURACY]:
                probs, truth = _predictions(accuracy[0], model, opened, progress)
                results["clean"] = classification.correct(probs, truth)
                for test in accuracy:
                    yield from _accuracy(test, model, probs, truth, note=opened.notes[test] + note)
                    yield from _calibrated(test, temperature.scaled(probs, fitted), truth, fitted)
            for test in (test for test in tests if test not in _ACCURACY):
                protocol = _protocol(opened, test, model, options)
                origin = opened.notes[test] + note
                yield from _test(test, model, opened, options, results, note=origin, progress=progress)
                yield from result_rows(test, results, model, origin, distances=distances, protocol=protocol)
    for test in dict.fromkeys(options.tests):
        if test in imagenet.SETS:
            yield from imagenet.measure(predictor, data, test, options.real_labels, progress)


def _check(predictor: Predictor, options: Options) -> dict[str, float] | None:
    """Check all options before the first test, because tests take hours; return the distances in `t5d`."""
    known = (*TESTS, *imagenet.SETS)
    if not options.tests:
        raise InputError(f"--tests names no test; choose one or more of {', '.join(known)}")
    for test in options.tests:
        if test not in known:
            raise InputError(f"--tests has {test!r}; choose one or more of {', '.join(known)}")
        if test in imagenet.SETS:
            imagenet.check(predictor, test)
    if predictor.num_classes < 2:
        raise InputError(
            f"{predictor.model.name} has {predictor.num_classes} class;"
            " a test needs a model with at least two"
        )
    if options.source_size not in (None, *SIDES):
        sizes = ", ".join(map(str, SIDES))
        raise InputError(
            f"--source-size is {options.source_size}; choose one of {sizes}, the sizes of the published sets"
        )
    if options.write is not None and "c" not in options.tests:
        raise InputError("--write writes the corrupted images of the test c; add c to --tests")
    return None if options.t5d is None else measures.read_t5d_normalizer(options.t5d)


def _models(predictor: Predictor, options: Options) -> Iterator[tuple[Predictor, tuple[str, ...], str]]:
    """Models to evaluate, each with its tests and a note for their results.

    As in the paper, c, p and their extras are measured on the model before its fine-tuning at a higher
    resolution, which costs robustness. All other tests are measured on the model itself.
    """
    tests = tuple(test for test in TESTS if test in options.tests)
    earlier = tuple(test for test in tests if predictor.before and test.split("-")[0] in ("c", "p"))
    if final := tuple(test for test in tests if test not in earlier):
        yield predictor, final, ""
    if predictor.before is not None and earlier:
        first = load_predictor(predictor.before, str(predictor.device))
        first = replace(first, dtype=predictor.dtype, flip=predictor.flip, temperature=1.0)
        yield first, earlier, f", the model before its fine-tuning, of {first.resolution} pixels"


def _protocol(opened: OpenedImages, test: str, predictor: Predictor, options: Options) -> str:
    """Check that a published set is complete, and return its protocol in the anchors.

    It is "" if no published results are comparable: for generated images, for a sample, and for other classes
    than ImageNet's.
    """
    published = opened.sets.get(test)
    if published is None:
        return ""
    published.check(test, options.severities)
    if options.fast or published.regenerated is not None or predictor.classes != imagenet_classes():
        return ""
    return f"released-{published.side(test)}"


def _predictions(
    task: str, predictor: Predictor, opened: OpenedImages, progress: Progress
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Probabilities (N, K) and labels (N,) of the clean images, in one pass for all tests that need them."""
    parts: list[NDArray[np.int64]] = []

    def images() -> Iterator[Tensor]:
        for batch, batch_labels in watched(opened.images.clean(), task, opened.count, progress):
            parts.append(batch_labels)
            yield batch

    probs = predict_probs(predictor, images())
    return probs, np.concatenate(parts)


def _accuracy(
    test: str, predictor: Predictor, probs: NDArray[np.float32], truth: NDArray[np.int64], *, note: str
) -> Iterator[Row]:
    """Clean accuracy or calibration."""
    if test == "calibration":
        values = scores.calibration(probs, truth, _ECE_BINS)
        yield from (Row(test, name, value) for name, value in values.items())
        return
    top1 = summary.mean(classification.correct(probs, truth))
    for name, value in scores.score(probs, truth, _ECE_BINS).items():
        yield mean_row(test, name, top1, note) if name == "top1" else Row(test, name, value)
    if predictor.classes == imagenet_classes():
        yield from published_rows(test, "center-crop", len(truth))


def _calibrated(test: str, probs: Floats, truth: NDArray[np.int64], fitted: float) -> Iterator[Row]:
    """Rows of what the temperature `fitted` changes, at which `probs` are; none if it is 1."""
    if fitted == 1:
        return
    measured = scores.calibration if test == "calibration" else scores.score
    for name, value in measured(probs, truth, _ECE_BINS).items():
        if name not in ("top1", "top5"):
            yield Row(test, f"{name} calibrated", value, note=f"temperature {fitted}, fitted on val")


def _test(
    test: str,
    predictor: Predictor,
    opened: OpenedImages,
    options: Options,
    results: Results,
    *,
    note: str,
    progress: Progress,
) -> Iterator[Row]:
    """Run one test and add to `results`; rows are yielded only if it fails, with its finished parts."""
    plan = Plan(tests=(test,), severities=options.severities, seed=options.seed, ece_bins=_ECE_BINS)

    def advance(done: int, total: int) -> None:
        check(progress)
        if total > 1:  # a test without parts counts its images instead, see `_watched`
            progress.advance(test, done, total)

    name, images = predictor.model.name, _watched(opened, test, progress)
    try:
        run_tests({name: predictor}, images, plan, {name: results}, save=lambda: None, progress=advance)
    except BaseException:  # also a signal or Ctrl-C
        yield from part_rows(test, results, note)
        raise


def _watched(opened: OpenedImages, test: str, progress: Progress) -> SuiteImages:
    """The same images, with a check for signals between batches; clean images also advance the progress."""
    images = opened.images

    def clean() -> Iterator[LabeledBatch]:
        batches = attack_batches(images.clean()) if test in ("fgsm", "pgd") else images.clean()
        return watched(batches, test, opened.count, progress)

    def corrupted(name: str, severity: int) -> Iterator[LabeledBatch]:
        return watched(images.corrupted(name, severity), test, 0, progress)

    def perturbed(name: str) -> Iterator[Tensor]:
        return watched(images.perturbed(name), test, 0, progress)

    return replace(images, clean=clean, corrupted=corrupted, perturbed=perturbed)
