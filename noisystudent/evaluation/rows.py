"""Rows of results of an evaluated model, beside published results, and writing them to a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from noisystudent.inference.predictor import Predictor
from noisystudent.robustness import anchors, measures
from noisystudent.robustness.attacks import FGSM_SWEEP, PGD_EPS, PGD_STEPS, WARNING
from noisystudent.robustness.imagenet import imagenet_classes
from noisystudent.robustness.results import Results
from noisystudent.robustness.summary import Summary, alexnet, ratios, summarize
from noisystudent.run.files import check_out, csv_lines, write_json, write_text

SUFFIXES = (".json", ".csv")


class Row(NamedTuple):
    """One result. `low` and `high` are the ends of the interval over images, or None."""

    test: str
    measure: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


def write_rows(rows: Sequence[Row], out: Path) -> None:
    """Write all rows to a .json or .csv file, atomically. It replaces the rows written before.

    Raises:
        InputError: another suffix.
        RunError: the disk is full.
    """
    check_out(out, overwrite=True, suffixes=SUFFIXES)
    if out.suffix.lower() == ".json":
        write_json(out, [row._asdict() for row in rows])
        return
    write_text(out, "".join(csv_lines([Row._fields, *rows])))


WHOLE = {"a": 7_500, "r": 30_000, "v2": 10_000, "sketch": 50_889}
"""Images in ImageNet's test sets. Published results are comparable only with results on all images."""

_VAL = 50_000  # images of ImageNet's validation set, from which all other sets are made


def result_rows(
    test: str,
    results: Results,
    predictor: Predictor,
    note: str,
    *,
    distances: Mapping[str, float] | None = None,
    protocol: str = "",
) -> Iterator[Row]:
    """Rows of one test: the summary first, then published results, then the parts.

    Args:
        test: one of `suite.TESTS`, except clean.
        results: results of the model on this test and earlier ones.
        predictor: the model.
        note: origin of the images.
        distances: AlexNet's top-5 distances by perturbation; None: not available.
        protocol: protocol of c and p, as in the published anchors; "": comparable with none of them.
    """
    summary = summarize(results)
    imagenet = predictor.classes == imagenet_classes()
    if test == "c":
        yield mean_row(test, "mean error", summary[test], note)
        yield from _errors_to_alexnet(summary, note) if imagenet else ()
    if test == "p":
        yield mean_row(test, "mean flip probability", summary[test], f"{note}; with snow, without spatter")
        yield from _flips_to_alexnet(summary, note) if imagenet else ()
        yield from _distances(summary[test]["t5d"], distances)
    if imagenet:
        yield from _published(test, results, predictor, protocol)
    yield from part_rows(test, results, note)


def part_rows(test: str, results: Results, note: str = "") -> Iterator[Row]:
    """Rows of the parts of a test; parts without results have no rows."""
    summary = summarize(results).get(test, {})
    if test == "calibration":
        yield from (Row(test, name, value) for name, value in summary.items())
    for name, errors in summary.get("errors", {}).items():
        yield Row(test, f"error {name}", sum(errors.values()) / len(errors))
    for name, errors in summary.get("errors", {}).items():
        yield from (Row(test, f"error {name} {severity}", error) for severity, error in errors.items())
    for kind, words in (("flips", "flips"), ("t5d", "top-5 distance"), ("zipf", "Zipf distance")):
        yield from (Row(test, f"{words} {name}", value) for name, value in summary.get(kind, {}).items())
    if test == "fgsm":
        for eps, mean in summary.items():
            yield mean_row(test, f"top1 at {eps}/255", mean, f"{note}. {WARNING}")
    if test == "pgd":
        attack = f"{note}, {PGD_STEPS} steps of {2.5 * PGD_EPS / PGD_STEPS:g}/255. {WARNING}"
        for key, mean in summary.items():
            eps, _, start = key.partition("-")  # "16" or "16-random"
            yield mean_row(test, f"top1 at {eps}/255{', random start' if start else ''}", mean, attack)


def mean_row(test: str, measure: str, mean: Summary, note: str = "") -> Row:
    """The row of a mean with its interval."""
    return Row(test, measure, mean["value"], mean["low"], mean["high"], note)


def published_rows(test: str, protocol: str, images: int, resolution: int | None = None) -> Iterator[Row]:
    """Rows of published results on the same set by the same protocol; none if only a part of it was used.

    Args:
        test: as in `anchors.find`.
        protocol: as in `anchors.find`.
        images: number of images of the model's own result.
        resolution: required resolution of the published result; None: any.
    """
    if images != WHOLE.get(test, _VAL):
        return
    at = f" at {protocol.split('-')[1]}/255" if protocol.startswith("eps-") else ""
    for anchor in anchors.find(test, protocol):
        if resolution in (None, anchor.resolution):
            yield Row(test, f"{anchor.measure}{at} of {anchor.model}", anchor.value, note=anchor.source)


def _published(test: str, results: Results, predictor: Predictor, protocol: str) -> Iterator[Row]:
    """Published results for one test of the suite, at every eps for FGSM."""
    images = {len(part) for key, part in results.items() if key.startswith(f"{test}/") and part.ndim}
    protocols: dict[str, Sequence[str]] = {
        "c": (protocol,),
        "p": (protocol,),
        "fgsm": [f"eps-{eps:g}" for eps in FGSM_SWEEP],
        "pgd": (f"eps-{PGD_EPS:g}-steps-{PGD_STEPS}",),
    }
    side = predictor.resolution if test in ("fgsm", "pgd") else None
    for name in protocols.get(test, ()):
        yield from published_rows(test, name, max(images), side)


def _errors_to_alexnet(summary: Summary, note: str) -> Iterator[Row]:
    """mCE and relative mCE; only for ImageNet's 1000 classes, because AlexNet's errors are on these."""
    divided, count = ratios(summary, alexnet()), len(summary["c"]["errors"])
    kind = "mCE" if count == len(measures.CORRUPTIONS) else f"mCE-{count}"
    note = f"{note}; divided by AlexNet's at 224 pixels"
    yield Row("c", kind, divided["mce"], note=note)
    if divided.get("relative_mce") is not None:  # missing without a clean error
        yield Row("c", f"relative {kind}", divided["relative_mce"], note=note)


def _flips_to_alexnet(summary: Summary, note: str) -> Iterator[Row]:
    """mFR; only for ImageNet's 1000 classes."""
    divided = ratios(summary, alexnet())
    yield Row("p", "mFR", divided["mfr"], note=f"{note}; divided by AlexNet's at 224 pixels")


def _distances(distances: Mapping[str, float], by: Mapping[str, float] | None) -> Iterator[Row]:
    """Mean top-5 distance, and mT5D if the user gave AlexNet's distances."""
    mean = sum(distances.values()) / len(distances)
    yield Row("p", "mean top-5 distance", mean, note="not divided by another model's")
    if by is not None:
        yield Row(
            "p", "mT5D", measures.mt5d(distances, by), note="divided by the distances in the given file"
        )
