"""A trained model on labelled images: accuracy, calibration, corruptions, perturbations, attacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import InputError
from noisystudent.evaluate import columns, metrics, robustness, suite
from noisystudent.evaluate.answers import Answers
from noisystudent.evaluate.corruptions import COLUMNS
from noisystudent.evaluate.pictures import Labeled as Shown
from noisystudent.evaluate.pictures import Pictures
from noisystudent.evaluate.stress import TESTS, Plan, Subject, few, stress
from noisystudent.evaluate.subsets import imagenet_classes
from noisystudent.inference import imagenet, telling
from noisystudent.inference.asked import Asked
from noisystudent.inference.images import Labeled, halt, watched
from noisystudent.inference.loading import Predictor, load_predictor
from noisystudent.inference.rows import Row
from noisystudent.inference.showing import Scene, scene
from noisystudent.models.registry import Classifier
from noisystudent.runtime import Silent, StopFlag, Voice


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
    `cifar-10-c`, `cifar-100-c` and `cifar-10-p`. Of a test that breaks off, the parts that were done are
    given before the error is raised.

    Raises:
        InputError: an unknown test, a class the model has not, or an attack on a model without gradients.
        Stopped: `stop` was raised.
    """
    distances = _check(predictor, asked)
    voice, stop = voice or Silent(), stop or StopFlag()
    for model, tests, when in _models(predictor, asked):
        with scene(model, data, replace(asked, tests=tests), stop, voice) as shown:
            answers: Answers = {}
            for test in tests:
                pictures, note = _watched(shown, test, stop, voice), shown.notes[test] + when
                if test == "clean":
                    yield from _clean(model, pictures, answers, note)
                    continue
                protocol = _prepared(shown, test, model, asked)
                yield from _stressed(test, model, pictures, asked, answers, note, stop, voice)
                yield from telling.rows(test, answers, model, note, distances=distances, protocol=protocol)
    for test in dict.fromkeys(asked.tests):
        if test in imagenet.SETS:
            yield from imagenet.measure(predictor, data, test, asked.real_labels, stop, voice)


def _check(predictor: Predictor, asked: Asked) -> dict[str, float] | None:
    """Refuse what cannot be done before hours go into the rest; the distances of `asked.t5d`."""
    if not asked.tests:
        raise InputError(f"--tests names no test; choose of {', '.join((*TESTS, *imagenet.SETS))}")
    for test in asked.tests:
        if test not in (*TESTS, *imagenet.SETS):
            raise InputError(f"--tests has {test!r}; choose of {', '.join((*TESTS, *imagenet.SETS))}")
        if test in imagenet.SETS:
            imagenet.check(predictor, test)
    if predictor.model.num_classes < 2:
        raise InputError(
            f"{predictor.model.name} tells no two classes apart; a test needs a model of two or more"
        )
    if asked.source_size not in (None, *COLUMNS):
        sizes = ", ".join(map(str, COLUMNS))
        raise InputError(f"--source-size is {asked.source_size}; the published sets are of {sizes} pixels")
    if asked.write is not None and "c" not in asked.tests:
        raise InputError("--write needs c among --tests: it writes the corrupted images of that test")
    return None if asked.t5d is None else robustness.read_t5d_normalizer(asked.t5d)


def _models(predictor: Predictor, asked: Asked) -> Iterator[tuple[Predictor, tuple[str, ...], str]]:
    """A model, its tests, and what to say of it: as in the paper c and p come before a higher resolution."""
    tests = tuple(test for test in TESTS if test in asked.tests)
    own = tests if predictor.before is None else tuple(test for test in tests if test not in ("c", "p"))
    if own:
        yield predictor, own, ""
    if rest := tuple(test for test in tests if test not in own):
        first = load_predictor(predictor.before or "", str(predictor.device))
        first = replace(first, dtype=predictor.dtype)
        yield first, rest, f", the model before its fine-tuning, of {first.model.resolution} pixels"


def _prepared(shown: Scene, test: str, predictor: Predictor, asked: Asked) -> str:
    """Look a published set through; its protocol among the anchors, "" where figures stand alone."""
    found = shown.found.get(test)
    if found is None:
        return ""
    found.check(test, asked.severities)
    if asked.fast or found.regenerated is not None or predictor.classes != imagenet_classes():
        return ""
    return f"released-{found.side(test)}"


def _stressed(
    test: str,
    predictor: Predictor,
    pictures: Pictures,
    asked: Asked,
    answers: Answers,
    note: str,
    stop: StopFlag,
    voice: Voice,
) -> Iterator[Row]:
    """Fill `answers`; rows come only of a test that breaks off."""
    plan = Plan(tests=(test,), severities=asked.severities, seed=asked.seed)

    def progress(done: int, total: int) -> None:
        halt(stop)
        if total > 1:  # else images are counted
            voice.progress(test, done, total)

    model, name = predictor.model, predictor.model.name
    subject = Subject(predictor, model if isinstance(model, Classifier) else None)
    try:
        stress({name: subject}, pictures, plan, {name: answers}, lambda: None, progress)
    except BaseException:
        yield from telling.parts(test, answers, note)
        raise


def _watched(shown: Scene, test: str, stop: StopFlag, voice: Voice) -> Pictures:
    """The same pictures; a signal stops between two batches, and those of no parts are counted."""
    pictures = shown.pictures

    def clean() -> Iterator[Shown]:
        batches = few(pictures.clean()) if test in ("fgsm", "pgd") else pictures.clean()
        return watched(batches, test, shown.images, stop, voice)

    def corrupted(name: str, severity: int) -> Iterator[Shown]:
        return watched(pictures.corrupted(name, severity), test, 0, stop, voice)

    def perturbed(name: str) -> Iterator[Tensor]:
        return watched(pictures.perturbed(name), test, 0, stop, voice)

    return replace(pictures, clean=clean, corrupted=corrupted, perturbed=perturbed)


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
            telling.row("clean", name, columns.mean(answers["clean"]), note)
            if name == "top1"
            else Row("clean", name, value)
        )
    if predictor.classes == imagenet_classes():
        yield from telling.others("clean", "center-crop", len(truth))
