"""Corruption errors, flip rates and top-5 distances as ImageNet-C and ImageNet-P define them.

Arrays in, floats out. Errors, flip probabilities and accuracies are shares in 0 to 1, and so is all that is
averaged from them: a published mCE of 45.7 is 0.457 here, and AlexNet's own is 1. A corruption's errors are
{severity: error}; any set of severities will do, if it is the same everywhere. Definitions: Hendrycks and
Dietterich 2019.
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
from noisystudent.evaluate import data
from noisystudent.evaluate.metrics import Floats, Ints

Errors = Mapping[str, Mapping[int, float]]

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # never enter a mean
PERTURBATIONS = (
    "gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "snow",
    "brightness", "translate", "rotate", "tilt", "scale",
)  # fmt: skip
EXTRA_PERTURBATIONS = ("speckle_noise", "gaussian_blur", "spatter", "shear")  # never enter a mean

DISPLACED = 6  # rank of a class that left the five most likely
MOST_DISPLACED = 18  # the first three leave, the last two become the first


@dataclass(frozen=True, slots=True)
class Normalizer:
    """What one model scored, for other models' scores to be divided by.

    Attributes:
        clean: error on clean images.
        errors: {corruption: {severity: error}}.
        flips: {perturbation: flip probability}.
    """

    clean: float
    errors: Errors
    flips: Mapping[str, float]


def _alexnet() -> Normalizer:
    table = json.loads(data.read_text("alexnet.json"))
    errors = table["corruption_errors"] | table["extra_corruption_errors"]
    return Normalizer(
        table["clean_error"],
        {name: dict(enumerate(values, start=1)) for name, values in errors.items()},
        table["flip_probabilities"] | table["extra_flip_probabilities"],
    )


# Of the 1000-class sets at 224 pixels. Nothing else may be divided by it; name a model of your own there.
ALEXNET = _alexnet()


def corruption_errors(
    errors: Errors, by: Errors = ALEXNET.errors, names: Sequence[str] = CORRUPTIONS
) -> dict[str, float]:
    """CE of each corruption: its errors summed over severities, divided by the sum of `by`.

    Args:
        errors: of the model.
        by: of the model to divide by; more severities than `errors` has do no harm.
        names: corruptions to return; without real frost images, all but frost.

    Raises:
        InputError: a corruption or severity is missing, an error is no share, or `by` never errs.
    """
    severities = _matched(errors, by, names)
    sums = {name: math.fsum(by[name][severity] for severity in severities) for name in names}
    return {name: _ratio(math.fsum(errors[name].values()), sums[name], name) for name in names}


def mce(errors: Errors, by: Errors = ALEXNET.errors, names: Sequence[str] = CORRUPTIONS) -> float:
    """Mean over corruptions of `corruption_errors`; with fewer `names` than 15, say so beside the number."""
    return _mean(corruption_errors(errors, by, names).values())


def relative_mce(
    errors: Errors,
    clean: float,
    by: Errors = ALEXNET.errors,
    by_clean: float = ALEXNET.clean,
    names: Sequence[str] = CORRUPTIONS,
) -> float:
    """As `mce`, of what each corruption adds to the clean error; below 0 if the model gains by corruption.

    Raises:
        InputError: as of `corruption_errors`, or a corruption that costs the model `by` nothing.
    """
    severities = _matched(errors, by, names)
    added = {name: math.fsum(errors[name][s] - clean for s in severities) for name in names}
    base = {name: math.fsum(by[name][s] - by_clean for s in severities) for name in names}
    return _mean(_ratio(added[name], base[name], name) for name in names)


def mean_corruption_error(errors: Errors, names: Sequence[str] = CORRUPTIONS) -> float:
    """Plain mean over corruptions and severities, divided by nobody's: the measure of CIFAR-10-C."""
    _severities(errors, names)
    return _mean(error for name in names for error in errors[name].values())


def against_first(perturbation: str) -> bool:
    """Whether frames are compared with the first, clean one, as in noise; else each with the one before."""
    return "noise" in perturbation


def flip_probability(predictions: Ints, noise: bool, stride: int = 1) -> float:
    """FP: how often the predicted class changes between compared frames, averaged over sequences.

    Args:
        predictions: (N, F) classes of N sequences of F frames.
        noise: compare with the first frame; see `against_first`.
        stride: distance of compared frames, all phases pooled; the noises have other frames instead.

    Raises:
        InputError: no two frames to compare.
    """
    before, after = _compared(predictions, noise, stride)
    return float((before != after).mean())


def mfr(
    flips: Mapping[str, float],
    by: Mapping[str, float] = ALEXNET.flips,
    names: Sequence[str] = PERTURBATIONS,
) -> float:
    """Mean flip rate: mean over perturbations of the flip probability divided by that of `by`.

    Raises:
        InputError: a perturbation is missing, a value is negative, or `by` never flips.
    """
    own, base = _values(flips, names), _values(by, names)
    return _mean(_ratio(own[name], base[name], name) for name in names)


def mean_flip_probability(flips: Mapping[str, float], names: Sequence[str] = PERTURBATIONS) -> float:
    """Plain mean over perturbations. CIFAR-10-P's script takes spatter in place of snow: say which."""
    return _mean(_values(flips, names).values())


def top5(logits: Floats) -> NDArray[np.int64]:
    """(…, K) -> (…, min(5, K)) classes, most likely first; the lower class number first among equals."""
    return _order(logits)[..., :5]


def top5_distances(first: Ints, second: Ints) -> Ints:
    """How far the five most likely classes of `first` moved in `second`: 0 to 18, not symmetric.

    Sum over the classes ranked i = 1 … 5 of |i - rank in second|, where every rank beyond 5 counts as 6.

    Args:
        first: (…, k) classes as `top5` gives them.
        second: (…, k), of leading dimensions that broadcast with those of `first`.
    """
    same = first[..., :, None] == second[..., None, :]
    rank = np.where(same.any(axis=-1), same.argmax(axis=-1) + 1, DISPLACED)
    return np.asarray(np.abs(rank - np.arange(1, first.shape[-1] + 1)).sum(axis=-1))


def t5d(top: Ints, noise: bool, stride: int = 1) -> float:
    """Unnormalized top-5 distance of (N, F, k) classes as `top5` gives them; pairs as `flip_probability`."""
    return float(top5_distances(*_compared(top, noise, stride)).mean())


def mt5d(
    distances: Mapping[str, float], by: Mapping[str, float], names: Sequence[str] = PERTURBATIONS
) -> float:
    """Mean over perturbations of `t5d` divided by that of `by`. AlexNet's are not published with the set."""
    return mfr(distances, by, names)


def zipf(logits: Floats, noise: bool, stride: int = 1) -> float:
    """Rank displacement of all classes of (N, F, K) logits, weighted 1/rank; pairs as `flip_probability`."""
    before, after = _compared(_order(logits), noise, stride)
    rank = np.argsort(after, axis=-1) + 1  # of each class in the later frame
    moved = np.take_along_axis(rank, before, axis=-1)
    weight = 1 / np.arange(1, logits.shape[-1] + 1)
    return float((np.abs(weight - 1 / moved) * weight).sum(axis=-1).mean())


def read_t5d_normalizer(path: Path) -> dict[str, float]:
    """A JSON file {perturbation: t5d} of the ten, such as AlexNet's where a user has them.

    Raises:
        InputError: no such file, not JSON, or a perturbation is missing, unknown or not positive.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); give {{perturbation: t5d}}") from error
    if not isinstance(table, dict) or sorted(table) != sorted(PERTURBATIONS):
        raise InputError(f"{path} must be a JSON object of exactly {', '.join(PERTURBATIONS)}")
    for name, value in table.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST_DISPLACED:
            raise InputError(f"{path}: {name} is {value!r}; a top-5 distance above 0, at most 18, is needed")
    return {name: float(table[name]) for name in PERTURBATIONS}


def _matched(errors: Errors, by: Errors, names: Sequence[str]) -> tuple[int, ...]:
    """The severities of `errors`, which `by` must have too."""
    severities = _severities(errors, names)
    _severities({name: _pick(by, name, severities) for name in names}, names)
    return severities


def _severities(errors: Errors, names: Sequence[str]) -> tuple[int, ...]:
    """The severities, after a check that every corruption has the same and every error is a share."""
    if not names:
        raise InputError("no corruptions are named")
    wanted = tuple(sorted(errors.get(names[0], ())))
    for name in names:
        values = _pick(errors, name, wanted)
        if len(errors[name]) != len(wanted):
            raise InputError(f"{name} has severities {sorted(errors[name])}, {names[0]} {list(wanted)}")
        for severity, error in values.items():
            if not 0 <= error <= 1:
                raise InputError(f"the error of {name} {severity} is {error}; it is a share in 0 to 1")
    return wanted


def _pick(errors: Errors, name: str, severities: Sequence[int]) -> Mapping[int, float]:
    if not errors.get(name):
        raise InputError(f"no errors of {name}; there are those of {', '.join(errors) or 'nothing'}")
    missing = [severity for severity in severities if severity not in errors[name]]
    if missing:
        raise InputError(f"{name} lacks severity {missing[0]}; it has {sorted(errors[name])}")
    return {severity: errors[name][severity] for severity in severities}


def _values(table: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    for name in names:
        if name not in table:
            raise InputError(f"no value of {name}; there are those of {', '.join(table) or 'nothing'}")
        if not 0 <= table[name] < math.inf:
            raise InputError(f"the value of {name} is {table[name]}; it cannot be")
    return {name: table[name] for name in names}


def _compared(frames: Ints, noise: bool, stride: int) -> tuple[Ints, Ints]:
    """Earlier and later frames of every pair, (N, P, …) each; the earlier is (N, 1, …) in noise."""
    if noise and stride != 1:
        raise InputError(f"stride is {stride}; the harder noises are other frames, not a stride")
    if frames.ndim < 2 or not frames.size or not 1 <= stride < frames.shape[1]:
        raise InputError(f"frames are {frames.shape} and stride {stride}; (N, F) with F > stride is needed")
    if noise:
        return frames[:, :1], frames[:, 1:]
    return frames[:, :-stride], frames[:, stride:]


def _order(logits: Floats) -> NDArray[np.int64]:
    return np.argsort(-logits, axis=-1, kind="stable")


def _ratio(value: float, base: float, name: str) -> float:
    if base <= 0:
        raise InputError(f"{name} does no harm to the model to divide by; there is no ratio to it")
    return value / base


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)
