"""From what a model did on each image to the rows that say it, and what others published of the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from noisystudent.evaluate import anchors, columns, robustness
from noisystudent.evaluate.answers import Answers
from noisystudent.evaluate.attacks import FGSM_SWEEP, PGD_EPS, PGD_STEPS, WARNING
from noisystudent.evaluate.columns import Column
from noisystudent.evaluate.subsets import imagenet_classes
from noisystudent.inference.loading import Predictor
from noisystudent.inference.rows import Row

WHOLE = {"a": 7_500, "r": 30_000, "v2": 10_000, "sketch": 50_889}
"""Images of ImageNet's test sets, the others of val: only a figure of all stands beside published ones."""

_VAL = 50_000


def rows(
    test: str,
    answers: Answers,
    predictor: Predictor,
    note: str,
    *,
    distances: Mapping[str, float] | None = None,
    protocol: str = "",
) -> Iterator[Row]:
    """What one test gives, the summary first.

    Args:
        test: one of `stress.TESTS` but clean.
        answers: of the model to this test and those before.
        predictor: the model.
        note: where the images come from.
        distances: AlexNet's top-5 distances by perturbation, where the user has them.
        protocol: of c and p, as published anchors have it; "" is none of theirs.
    """
    column = columns.column(answers)
    imagenet = predictor.classes == imagenet_classes()
    if test == "c":
        yield row(test, "mean error", column[test], note)
        yield from _errors_to_alexnet(column, note) if imagenet else ()
    if test == "p":
        yield row(test, "mean flip probability", column[test], f"{note}; with snow, without spatter")
        yield from _flips_to_alexnet(column, note) if imagenet else ()
        yield from _distances(column[test]["t5d"], distances)
    if imagenet:
        yield from _published(test, answers, predictor, protocol)
    yield from parts(test, answers, note)


def parts(test: str, answers: Answers, note: str = "") -> Iterator[Row]:
    """What is known of each part of a test, also where not all of them could be done."""
    found = columns.column(answers).get(test, {})
    if test == "calibration":
        yield from (Row(test, name, value) for name, value in found.items())
    for name, errors in found.get("errors", {}).items():
        yield Row(test, f"error {name}", sum(errors.values()) / len(errors))
    for name, errors in found.get("errors", {}).items():
        yield from (Row(test, f"error {name} {severity}", error) for severity, error in errors.items())
    for kind, words in (("flips", "flips"), ("t5d", "top-5 distance"), ("zipf", "Zipf distance")):
        yield from (Row(test, f"{words} {name}", value) for name, value in found.get(kind, {}).items())
    if test == "fgsm":
        for eps, mean in found.items():
            yield row(test, f"top1 at {eps}/255", mean, f"{note}. {WARNING}")
    if test == "pgd":
        how = f"{note}, {PGD_STEPS} steps of {2.5 * PGD_EPS / PGD_STEPS:g}/255. {WARNING}"
        for key, mean in found.items():
            eps, _, start = key.partition("-")
            yield row(test, f"top1 at {eps}/255{', random start' if start else ''}", mean, how)


def row(test: str, measure: str, mean: Column, note: str = "") -> Row:
    """A mean with its interval."""
    return Row(test, measure, mean["value"], mean["low"], mean["high"], note)


def others(test: str, protocol: str, images: int, resolution: int | None = None) -> Iterator[Row]:
    """What others published of the same set by the same protocol; nothing beside a part of the set.

    Args:
        test: as of `anchors.find`.
        protocol: as of `anchors.find`.
        images: how many ours is of.
        resolution: of theirs, where it belongs to the protocol.
    """
    if images != WHOLE.get(test, _VAL):
        return
    at = f" at {protocol.split('-')[1]}/255" if protocol.startswith("eps-") else ""
    for anchor in anchors.find(test, protocol):
        if resolution in (None, anchor.resolution):
            yield Row(test, f"{anchor.measure}{at} of {anchor.model}", anchor.value, note=anchor.source)


def _published(test: str, answers: Answers, predictor: Predictor, protocol: str) -> Iterator[Row]:
    images = {len(own) for key, own in answers.items() if key.startswith(f"{test}/") and own.ndim}
    protocols: dict[str, Sequence[str]] = {
        "c": (protocol,),
        "p": (protocol,),
        "fgsm": [f"eps-{eps:g}" for eps in FGSM_SWEEP],
        "pgd": (f"eps-{PGD_EPS:g}-steps-{PGD_STEPS}",),
    }
    side = predictor.model.resolution if test in ("fgsm", "pgd") else None
    for one in protocols.get(test, ()):
        yield from others(test, one, max(images), side)


def _errors_to_alexnet(column: Column, note: str) -> Iterator[Row]:
    """AlexNet's are of ImageNet's 1000 classes; with any other there is nothing to divide by."""
    found, count = columns.ratios(column, columns.alexnet()), len(column["c"]["errors"])
    kind = "mCE" if count == len(robustness.CORRUPTIONS) else f"mCE-{count}"
    divided = f"{note}; divided by AlexNet's at 224 pixels"
    yield Row("c", kind, found["mce"], note=divided)
    if found.get("relative_mce") is not None:  # there is a clean error, and all that AlexNet has is worse
        yield Row("c", f"relative {kind}", found["relative_mce"], note=divided)


def _flips_to_alexnet(column: Column, note: str) -> Iterator[Row]:
    found = columns.ratios(column, columns.alexnet())
    yield Row("p", "mFR", found["mfr"], note=f"{note}; divided by AlexNet's at 224 pixels")


def _distances(own: Mapping[str, float], by: Mapping[str, float] | None) -> Iterator[Row]:
    yield Row("p", "mean top-5 distance", sum(own.values()) / len(own), note="divided by nobody's")
    if by is not None:
        yield Row("p", "mT5D", robustness.mt5d(own, by), note="divided by the distances of the file given")
