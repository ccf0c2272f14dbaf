"""From what models did on each image to the numbers of a table: means, intervals, ratios to another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from noisystudent.errors import InputError
from noisystudent.evaluate import robustness
from noisystudent.evaluate.answers import Answers

Column = dict[str, Any]


def column(answers: Answers, level: float = 0.95) -> Column:
    """The numbers of one model by test; shares in 0 to 1, each mean with its interval over images.

    Returns:
        Of clean, c, p, fgsm and pgd what `answers` has, as {value, low, high}; c and p also with their parts:
        `errors` {corruption: {severity: error}}, `flips`, `t5d` and `zipf` {perturbation: mean}.
        calibration: {metric: value}.
    """
    found: Column = {}
    if "clean" in answers:
        found["clean"] = mean(answers["clean"], level)
    cells = _under(answers, "c")
    if cells:
        errors: dict[str, dict[str, float]] = {}
        for (name, severity), hits in cells.items():
            errors.setdefault(name, {})[severity] = float(1 - hits.mean())
        wrong = np.mean([~hits for hits in cells.values()], axis=0)  # (N,) share of each image's cells
        found["c"] = _share(wrong, level) | {"errors": errors, "images": len(wrong)}
    moved = _under(answers, "p")
    if moved:
        flips = [values for (_, kind), values in moved.items() if kind == "flips"]
        means: dict[str, dict[str, float]] = {}
        for (name, kind), values in moved.items():
            means.setdefault(kind, {})[name] = float(values.mean())
        found["p"] = _share(np.mean(flips, axis=0), level) | means
    for test in ("fgsm", "pgd"):
        hit = {eps: values for (eps,), values in _under(answers, test).items()}
        if hit:
            found[test] = {eps: mean(values, level) for eps, values in hit.items()}
    numbers = {metric: float(value) for (metric,), value in _under(answers, "calibration").items()}
    return found | ({"calibration": numbers} if numbers else {})


def ratios(own: Column, other: Column) -> Column:
    """`own` divided by `other` as mCE, relative mCE and mFR divide by AlexNet.

    None where there is nothing to divide by: a corruption on which `other` never errs.

    Both must be of the same images, corruptions and severities.
    """
    found: Column = {}
    if "c" in own and "c" in other:
        errors, by = _errors(own), _errors(other)
        names = tuple(errors)
        sums = [sum(by[name][severity] for severity in errors[name]) for name in names]
        found["mce"] = robustness.mce(errors, by, names) if min(sums) > 0 else None
        if "clean" in own and "clean" in other:
            clean, by_clean = (1 - one["clean"]["value"] for one in (own, other))
            added = [total - by_clean * len(errors[name]) for total, name in zip(sums, names, strict=True)]
            relative = min(added) > 0
            found["relative_mce"] = (
                robustness.relative_mce(errors, clean, by, by_clean, names) if relative else None
            )
    if "p" in own and "p" in other:
        flips, by_flips = own["p"]["flips"], other["p"]["flips"]
        some = min(by_flips[name] for name in flips) > 0
        found["mfr"] = robustness.mfr(flips, by_flips, tuple(flips)) if some else None
    return found


def alexnet() -> Column:
    """The published AlexNet as a column to divide by: of ImageNet at 224 pixels alone."""
    errors = {
        name: {str(severity): error for severity, error in robustness.ALEXNET.errors[name].items()}
        for name in robustness.CORRUPTIONS
    }
    flips = {name: robustness.ALEXNET.flips[name] for name in robustness.PERTURBATIONS}
    return {
        "clean": {"value": 1 - robustness.ALEXNET.clean},
        "c": {"errors": errors},
        "p": {"flips": flips},
    }


def differences(own: Answers, other: Answers, level: float = 0.95) -> dict[str, Column]:
    """`difference` in every test that both have."""
    tests = dict.fromkeys(key if key.startswith(("fgsm", "pgd")) else key.split("/")[0] for key in own)
    both = {key.split("/")[0] for key in own} & {key.split("/")[0] for key in other}
    return {
        test: difference(own, other, test, level)
        for test in tests
        if test.split("/")[0] in both and test != "calibration"
    }


def difference(own: Answers, other: Answers, test: str, level: float = 0.95) -> Column:
    """Mean of own - other over the same images, for `clean`, `c`, `p`, `fgsm/<eps>` or `pgd/<eps>`.

    clean, fgsm and pgd compare shares that are right; c and p errors and flips.
    """
    first, second = (_values(answers, test) for answers in (own, other))
    if first.shape != second.shape:
        raise InputError(f"{test}: {len(first)} and {len(second)} images cannot be compared image by image")
    return mean(first.astype(np.float64) - second, level)


def _values(answers: Answers, test: str) -> NDArray[np.float64]:
    if test == "c":
        parts = [~hits for hits in _under(answers, "c").values()]
    elif test == "p":
        parts = [values for (_, kind), values in _under(answers, "p").items() if kind == "flips"]
    else:
        parts = [answers[test]]
    return np.asarray(np.mean(parts, axis=0, dtype=np.float64))


def _under(answers: Answers, test: str) -> Mapping[tuple[str, ...], NDArray[Any]]:
    parts = ((tuple(key.split("/")), values) for key, values in answers.items())
    return {key[1:]: values for key, values in parts if key[0] == test and len(key) > 1}


def _errors(column: Column) -> dict[str, dict[int, float]]:
    return {
        name: {int(severity): error for severity, error in cells.items()}
        for name, cells in column["c"]["errors"].items()
    }


def mean(values: NDArray[Any] | Sequence[float], level: float = 0.95) -> Column:
    """Mean of (N,) numbers and its interval over images: Wilson's of right or wrong ones, else normal."""
    numbers = np.asarray(values, dtype=np.float64)
    count, mean = max(1, len(numbers)), float(numbers.mean())
    far = float(stats.norm.ppf(0.5 + level / 2))
    if np.asarray(values).dtype != np.bool_:
        half = far * float(numbers.std()) / count**0.5
        return {"value": mean, "low": mean - half, "high": mean + half}
    # no image right of 40 is no proof that none ever is: the normal interval would be 0 to 0
    middle = (mean + far**2 / (2 * count)) / (1 + far**2 / count)
    half = far * (mean * (1 - mean) / count + far**2 / (4 * count**2)) ** 0.5 / (1 + far**2 / count)
    low, high = min(mean, middle - half), max(mean, middle + half)
    return {"value": mean, "low": max(0.0, low), "high": min(1.0, high)}


def _share(values: NDArray[Any], level: float) -> Column:
    """`mean` of shares, whose interval ends where shares do."""
    found = mean(values, level)
    return found | {"low": max(0.0, found["low"]), "high": min(1.0, found["high"])}
