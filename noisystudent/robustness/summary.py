"""Summarise the results for each image: means, their intervals, and ratios to another model's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from noisystudent.errors import InputError
from noisystudent.metrics.precision import wilson
from noisystudent.robustness import measures
from noisystudent.robustness.results import Results

Summary = dict[str, Any]

Parts = Mapping[tuple[str, ...], NDArray[Any]]
"""(corruption, severity), (perturbation, kind), (eps,) or (metric,) of a part of a test -> its results."""


def summarize(results: Results, level: float = 0.95) -> Summary:
    """The results of one model by test; shares in 0 to 1, each mean with its interval over images.

    Args:
        results: results for each image.
        level: confidence level of the intervals.

    Returns:
        For each of the tests clean, c, p, fgsm and pgd in `results`: {value, low, high}, of fgsm and pgd for
        each eps. c and p also have their parts: `errors` {corruption: {severity: error}}, and `flips`, `t5d`
        and `zipf` {perturbation: mean}. calibration: {metric: value}. c-extra and p-extra have only their
        parts, because they are never part of a mean.
    """
    summary: Summary = {}
    if "clean" in results:
        summary["clean"] = mean(results["clean"], level)
    cells = _parts_of(results, "c")
    if cells:
        # (N,) for each image the share of corruptions and severities on which it is wrong. Averaging for each
        # image first gives an interval over images: the copies of one image are not independent.
        wrong = np.mean([~hits for hits in cells.values()], axis=0)
        summary["c"] = _share(wrong, level) | {"errors": _cell_errors(cells), "images": len(wrong)}
    sequences = _parts_of(results, "p")
    if sequences:
        flips = [values for (_, kind), values in sequences.items() if kind == "flips"]
        summary["p"] = _share(np.mean(flips, axis=0), level) | _sequence_means(sequences)
    if extra := _parts_of(results, "c-extra"):
        summary["c-extra"] = {"errors": _cell_errors(extra)}
    if extra := _parts_of(results, "p-extra"):
        summary["p-extra"] = _sequence_means(extra)
    for test in ("fgsm", "pgd"):
        hits_by_eps = {eps: values for (eps,), values in _parts_of(results, test).items()}
        if hits_by_eps:
            summary[test] = {eps: mean(values, level) for eps, values in hits_by_eps.items()}
    numbers = {metric: float(value) for (metric,), value in _parts_of(results, "calibration").items()}
    return summary | ({"calibration": numbers} if numbers else {})


def ratios(own: Summary, other: Summary) -> Summary:
    """The results of `own` divided by those of `other`, as mCE, relative mCE and mFR divide by AlexNet's.

    Both summaries must have the same images, corruptions and severities.

    Returns:
        {mce, relative_mce, mfr}, without those whose tests are missing. A value is None if it would divide by
        zero, for example because `other` has no error on some corruption.
    """
    divided: Summary = {}
    if "c" in own and "c" in other:
        errors, by = _errors(own), _errors(other)
        names = tuple(errors)
        sums = [sum(by[name][severity] for severity in errors[name]) for name in names]
        divided["mce"] = measures.mce(errors, by, names) if min(sums) > 0 else None
        if "clean" in own and "clean" in other:
            clean, by_clean = (1 - summary["clean"]["value"] for summary in (own, other))
            added = [total - by_clean * len(errors[name]) for total, name in zip(sums, names, strict=True)]
            relative = min(added) > 0
            divided["relative_mce"] = (
                measures.relative_mce(errors, clean, by, by_clean, names) if relative else None
            )
    if "p" in own and "p" in other:
        flips, by_flips = own["p"]["flips"], other["p"]["flips"]
        positive = min(by_flips[name] for name in flips) > 0
        divided["mfr"] = measures.mfr(flips, by_flips, tuple(flips)) if positive else None
    return divided


def alexnet() -> Summary:
    """The published results of AlexNet as a summary for `ratios`; only for ImageNet at 224 pixels."""
    errors = {
        name: {str(severity): error for severity, error in measures.ALEXNET.errors[name].items()}
        for name in measures.CORRUPTIONS
    }
    flips = {name: measures.ALEXNET.flips[name] for name in measures.PERTURBATIONS}
    return {
        "clean": {"value": 1 - measures.ALEXNET.clean},
        "c": {"errors": errors},
        "p": {"flips": flips},
    }


def differences(own: Results, other: Results, level: float = 0.95) -> dict[str, Summary]:
    """{test: `difference`} for every test that both models have; fgsm and pgd have one for each eps."""
    tests = dict.fromkeys(key if key.startswith(("fgsm", "pgd")) else key.split("/")[0] for key in own)
    both = {key.split("/")[0] for key in own} & {key.split("/")[0] for key in other}
    return {
        test: difference(own, other, test, level)
        for test in tests
        if test.split("/")[0] in both and test not in ("calibration", "c-extra", "p-extra")
    }


def difference(own: Results, other: Results, test: str, level: float = 0.95) -> Summary:
    """Mean of own - other over the same images, for `clean`, `c`, `p`, `fgsm/<eps>` or `pgd/<eps>`.

    For clean, fgsm and pgd it is the difference in accuracy, for c in error, for p in flip probability.

    Raises:
        InputError: the numbers of images differ.
    """
    first, second = (_values(results, test) for results in (own, other))
    if first.shape != second.shape:
        raise InputError(
            f"{test}: the two models have results for {len(first)} and {len(second)} images;"
            " they must be the same images"
        )
    return mean(first.astype(np.float64) - second, level)


def _values(results: Results, test: str) -> NDArray[np.float64]:
    """(N,) value of each image: error for c, flip probability for p, otherwise 1 for a right prediction."""
    if test == "c":
        parts = [~hits for hits in _parts_of(results, "c").values()]
    elif test == "p":
        parts = [values for (_, kind), values in _parts_of(results, "p").items() if kind == "flips"]
    else:
        parts = [results[test]]
    return np.asarray(np.mean(parts, axis=0, dtype=np.float64))


def _parts_of(results: Results, test: str) -> Parts:
    """The results of one test by the rest of their key: `c/fog/3` becomes ("fog", "3")."""
    parts = ((tuple(key.split("/")), values) for key, values in results.items())
    return {key[1:]: values for key, values in parts if key[0] == test and len(key) > 1}


def _cell_errors(cells: Parts) -> dict[str, dict[str, float]]:
    """{corruption: {severity: error}}."""
    errors: dict[str, dict[str, float]] = {}
    for (name, severity), hits in cells.items():
        errors.setdefault(name, {})[severity] = float(1 - hits.mean())
    return errors


def _sequence_means(sequences: Parts) -> dict[str, dict[str, float]]:
    """{kind: {perturbation: mean}} for flips, t5d and zipf."""
    means: dict[str, dict[str, float]] = {}
    for (name, kind), values in sequences.items():
        means.setdefault(kind, {})[name] = float(values.mean())
    return means


def _errors(summary: Summary) -> dict[str, dict[int, float]]:
    """{corruption: {severity: error}}; a summary has severities as text, because it is written as JSON."""
    return {
        name: {int(severity): error for severity, error in cells.items()}
        for name, cells in summary["c"]["errors"].items()
    }


def mean(values: NDArray[Any] | Sequence[float], level: float = 0.95) -> Summary:
    """Mean of (N,) numbers and its interval over images: Wilson's for booleans, otherwise the normal one.

    Returns:
        {value, low, high}.
    """
    numbers = np.asarray(values, dtype=np.float64)
    average = float(numbers.mean())
    if np.asarray(values).dtype == np.bool_:
        # If all images are wrong (or all right), the normal interval has length 0, which is too certain.
        low, high = wilson(int(numbers.sum()), len(numbers), level)
        return {"value": average, "low": low, "high": high}
    half = float(stats.norm.ppf(0.5 + level / 2) * numbers.std() / len(numbers) ** 0.5)
    return {"value": average, "low": average - half, "high": average + half}


def _share(values: NDArray[Any], level: float) -> Summary:
    """`mean` of shares, with the interval clipped to 0 … 1."""
    average = mean(values, level)
    return average | {"low": max(0.0, average["low"]), "high": min(1.0, average["high"])}
