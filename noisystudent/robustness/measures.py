"""Corruption errors, flip rates and top-5 distances as ImageNet-C and ImageNet-P define them.

The functions take arrays and return floats. Errors, flip probabilities and accuracies are shares in 0 to 1,
and so are their averages and ratios: a published mCE of 45.7 is 0.457 here, and AlexNet's own mCE is 1. The
errors of a corruption are {severity: error}; any set of severities is allowed if it is the same for all
corruptions. Definitions: Hendrycks and Dietterich 2019.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisystudent.errors import InputError
from noisystudent.metrics.classification import Floats, Ints
from noisystudent.robustness import tables

Errors = Mapping[str, Mapping[int, float]]

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # never part of a mean
PERTURBATIONS = (
    "gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "snow",
    "brightness", "translate", "rotate", "tilt", "scale",
)  # fmt: skip
EXTRA_PERTURBATIONS = ("speckle_noise", "gaussian_blur", "spatter", "shear")  # never part of a mean

DISPLACED = 6  # rank given to a class that is no longer among the five most likely
# Largest top-5 distance: ranks 1, 2, 3 become 6 and ranks 4, 5 become 1, 2 (5 + 4 + 3 + 3 + 3).
MOST_DISPLACED = 18


@dataclass(frozen=True, slots=True)
class Normalizer:
    """Results of the model that other models' results are divided by.

    Attributes:
        clean: error on clean images.
        errors: {corruption: {severity: error}}.
        flips: {perturbation: flip probability}.
    """

    clean: float
    errors: Errors
    flips: Mapping[str, float]


def _alexnet() -> Normalizer:
    table = json.loads(tables.read_text("alexnet.json"))
    errors = table["corruption_errors"] | table["extra_corruption_errors"]
    return Normalizer(
        table["clean_error"],
        {name: dict(enumerate(values, start=1)) for name, values in errors.items()},
        table["flip_probabilities"] | table["extra_flip_probabilities"],
    )


# AlexNet's results on the 1000-class sets at 224 pixels. Only results on these sets may be divided by them;
# on any other set, divide by the results of another model on the same set.
ALEXNET = _alexnet()


def corruption_errors(
    errors: Errors, by: Errors = ALEXNET.errors, names: Sequence[str] = CORRUPTIONS
) -> dict[str, float]:
    """Corruption error (CE) of each corruption: sum of `errors` over severities, divided by the sum of `by`.

    Args:
        errors: errors of the model.
        by: errors of the model to divide by; severities that `errors` lacks are ignored.
        names: corruptions to return; without frost photographs, all but frost.

    Raises:
        InputError: a corruption or severity is missing, an error is outside 0 to 1, or `by` has no errors.
    """
    severities = _matched(errors, by, names)
    sums = {name: math.fsum(by[name][severity] for severity in severities) for name in names}
    return {name: _ratio(math.fsum(errors[name].values()), sums[name], name) for name in names}


def mce(errors: Errors, by: Errors = ALEXNET.errors, names: Sequence[str] = CORRUPTIONS) -> float:
    """Mean corruption error (mCE): mean of `corruption_errors` over corruptions.

    A mean over fewer than 15 `names` is not mCE; state the number of corruptions beside it.
    """
    return _mean(corruption_errors(errors, by, names).values())


def relative_mce(
    errors: Errors,
    clean: float,
    by: Errors = ALEXNET.errors,
    by_clean: float = ALEXNET.clean,
    names: Sequence[str] = CORRUPTIONS,
) -> float:
    """Relative mCE: as `mce`, with the clean error subtracted from every error before the division.

    The result is below 0 if the corruptions lower the model's error. `by` and `by_clean` are the errors and
    the clean error of the model to divide by.

    Raises:
        InputError: as in `corruption_errors`, or a corruption does not raise the error of the model `by`.
    """
    severities = _matched(errors, by, names)
    added = {name: math.fsum(errors[name][s] - clean for s in severities) for name in names}
    base = {name: math.fsum(by[name][s] - by_clean for s in severities) for name in names}
    return _mean(_ratio(added[name], base[name], name) for name in names)


def against_first(perturbation: str) -> bool:
    """True if each frame is compared with the first, clean frame; otherwise with the previous frame.

    It is true for the noises, because their frames are independent draws.
    """
    return "noise" in perturbation


def flip_probability(predictions: Ints, noise: bool) -> float:
    """Flip probability (FP): share of compared frames whose predicted class differs, over all sequences.

    Args:
        predictions: (N, F) classes of N sequences of F frames.
        noise: compare with the first frame; see `against_first`.

    Raises:
        InputError: fewer than two frames.
    """
    before, after = _compared(predictions, noise)
    return float((before != after).mean())


def mfr(
    flips: Mapping[str, float],
    by: Mapping[str, float] = ALEXNET.flips,
    names: Sequence[str] = PERTURBATIONS,
) -> float:
    """Mean flip rate (mFR): mean over perturbations of the flip probability divided by that of `by`.

    Raises:
        InputError: a perturbation is missing, a value is negative, or a value of `by` is 0.
    """
    own, base = _values(flips, names), _values(by, names)
    return _mean(_ratio(own[name], base[name], name) for name in names)


def top5(logits: Floats) -> NDArray[np.int64]:
    """(…, K) -> (…, min(5, K)) classes, most likely first; of equal logits, the lower class number first."""
    return _order(logits)[..., :5]


def top5_distances(first: Ints, second: Ints) -> Ints:
    """Top-5 distance: how far the ranks of the five most likely classes of `first` differ in `second`.

    Sum over the classes ranked i = 1 … 5 of |i - rank in second|, where every rank beyond 5 counts as 6. The
    result is in 0 to 18 and not symmetric.

    Args:
        first: (…, k) classes as returned by `top5`.
        second: (…, k) classes; the leading dimensions broadcast with those of `first`.
    """
    same = first[..., :, None] == second[..., None, :]
    rank = np.where(same.any(axis=-1), same.argmax(axis=-1) + 1, DISPLACED)
    return np.asarray(np.abs(rank - np.arange(1, first.shape[-1] + 1)).sum(axis=-1))


def t5d(top: Ints, noise: bool) -> float:
    """Mean top-5 distance (T5D) of (N, F, k) classes from `top5`, compared as in `flip_probability`."""
    return float(top5_distances(*_compared(top, noise)).mean())


def mt5d(
    distances: Mapping[str, float], by: Mapping[str, float], names: Sequence[str] = PERTURBATIONS
) -> float:
    """Mean top-5 distance (mT5D): mean over perturbations of `t5d` divided by that of `by`.

    AlexNet's distances are not published with the set, so `by` has no default.
    """
    return mfr(distances, by, names)


def zipf(logits: Floats, noise: bool) -> float:
    """Zipf distance: change of the ranks of all classes of (N, F, K) logits, weighted by 1/rank.

    Frames are compared as in `flip_probability`.
    """
    before, after = _compared(_order(logits), noise)
    rank = np.argsort(after, axis=-1) + 1  # of each class in the later frame
    moved = np.take_along_axis(rank, before, axis=-1)
    weight = 1 / np.arange(1, logits.shape[-1] + 1)
    return float((np.abs(weight - 1 / moved) * weight).sum(axis=-1).mean())


def read_t5d_normalizer(path: Path) -> dict[str, float]:
    """Read a JSON file {perturbation: t5d} with all ten perturbations, for example AlexNet's distances.

    Raises:
        InputError: no such file, not JSON, a perturbation is missing or unknown, or a value is not positive.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); give {{perturbation: t5d}}") from error
    if not isinstance(table, dict) or sorted(table) != sorted(PERTURBATIONS):
        raise InputError(f"{path} must be a JSON object of exactly {', '.join(PERTURBATIONS)}")
    for name, value in table.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST_DISPLACED:
            raise InputError(f"{path}: {name} is {value!r}; a top-5 distance must be above 0 and at most 18")
    return {name: float(table[name]) for name in PERTURBATIONS}


def _matched(errors: Errors, by: Errors, names: Sequence[str]) -> tuple[int, ...]:
    """The severities of `errors`, after a check that `by` has them too."""
    severities = _severities(errors, names)
    _severities({name: _pick(by, name, severities) for name in names}, names)
    return severities


def _severities(errors: Errors, names: Sequence[str]) -> tuple[int, ...]:
    """The severities, after a check that all corruptions have the same and all errors are in 0 to 1."""
    if not names:
        raise InputError("no corruptions are named; give at least one")
    severities = tuple(sorted(errors.get(names[0], ())))
    for name in names:
        values = _pick(errors, name, severities)
        if len(errors[name]) != len(severities):
            raise InputError(
                f"{name} has severities {sorted(errors[name])}, but {names[0]} has {list(severities)};"
                " they must be the same"
            )
        for severity, error in values.items():
            if not 0 <= error <= 1:
                raise InputError(f"the error of {name} {severity} is {error}; it must be in 0 to 1")
    return severities


def _pick(errors: Errors, name: str, severities: Sequence[int]) -> Mapping[int, float]:
    """{severity: error} of one corruption, restricted to `severities`."""
    if not errors.get(name):
        raise InputError(f"no errors of {name}; there are errors of {', '.join(errors) or 'no corruption'}")
    missing = [severity for severity in severities if severity not in errors[name]]
    if missing:
        raise InputError(f"{name} lacks severity {missing[0]}; it has {sorted(errors[name])}")
    return {severity: errors[name][severity] for severity in severities}


def _values(table: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """The values of `names`, after a check that all are there, finite and not negative."""
    for name in names:
        if name not in table:
            raise InputError(f"no value of {name}; there are values of {', '.join(table) or 'nothing'}")
        if not 0 <= table[name] < math.inf:
            raise InputError(f"the value of {name} is {table[name]}; it must be 0 or more, and finite")
    return {name: table[name] for name in names}


def _compared(frames: Ints, noise: bool) -> tuple[Ints, Ints]:
    """Earlier and later frames of all compared pairs: (N, F - 1, …) each; for noise first (N, 1, …)."""
    if frames.ndim < 2 or not frames.size or frames.shape[1] < 2:
        raise InputError(f"frames have shape {frames.shape}; it must be (N, F, …) with F of at least 2")
    return frames[:, :1] if noise else frames[:, :-1], frames[:, 1:]


def _order(logits: Floats) -> NDArray[np.int64]:
    """(…, K) classes, most likely first; a stable sort, so that ties do not depend on the platform."""
    return np.argsort(-logits, axis=-1, kind="stable")


def _ratio(value: float, base: float, name: str) -> float:
    if base <= 0:
        raise InputError(f"{name}: the value to divide by is {base:g}; it must be above 0")
    return value / base


def _mean(values: Iterable[float]) -> float:
    """Mean of an exactly rounded sum: it does not depend on the order of the values."""
    listed = list(values)
    return math.fsum(listed) / len(listed)
