"""Temperature scaling: one number that brings the confidence of a model to its accuracy (Guo et al. 2017)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from noisystudent.errors import InputError
from noisystudent.metrics import classification
from noisystudent.metrics.classification import Floats, Ints
from noisystudent.metrics.power import LEAST_IMAGES

_DIGITS = 4  # significant ones of a fitted temperature; more would depend on how a machine rounds


def fit(probs: Floats, labels: Ints) -> float:
    """Temperature of a model from its predictions on val; 1 unless that makes val clearly more likely.

    It is the optimum, if the mean NLL falls by more than the standard error of this fall: the standard
    deviation of the falls of the single images, divided by the root of their number. Where nothing is wrong,
    a temperature would fit the choice of the images. With fewer than `LEAST_IMAGES` it is 1, too.

    Args:
        probs: (N, K) probabilities at temperature 1.
        labels: (N,) labels.
    """
    classification.check(probs, labels)
    if len(labels) < LEAST_IMAGES:
        return 1.0
    logits = _logits(probs)
    best = optimum(logits, labels)
    if best is None:
        return 1.0
    temperature = float(f"{best:.{_DIGITS}g}")
    falls = _nll(logits, labels) - _nll(logits / temperature, labels)
    error = falls.std(ddof=1) / np.sqrt(len(falls))
    return temperature if falls.mean() > error else 1.0


def optimum(logits: Floats, labels: Ints) -> float | None:
    """Temperature T > 0 with the least mean NLL of softmax(logits / T).

    The mean NLL is convex in 1 / T. It has its minimum at a positive, finite T unless every label has the
    largest logit of its row (the optimum would be 0), or the labels have no more than the mean logit
    (infinity).

    Args:
        logits: (N, K); a constant added to a row changes nothing, so logarithms of probabilities serve too.
        labels: (N,) labels.

    Returns:
        The temperature, found by L-BFGS for its logarithm in float64; None if there is none.
    """
    values = logits.astype(np.float64)
    values = values - values.max(axis=1, keepdims=True)
    of_label = np.take_along_axis(values, labels[:, None], axis=1)[:, 0]
    if (of_label == 0).all() or (of_label - values.mean(axis=1)).sum() <= 0:
        return None

    def mean_nll(log_temperature: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Value and derivative at log T, a single number."""
        inverse = np.exp(-log_temperature[0])
        scaled = values * inverse
        expected = (special.softmax(scaled, axis=1) * values).sum(axis=1)
        value = (special.logsumexp(scaled, axis=1) - of_label * inverse).mean()
        return float(value), np.array([inverse * (of_label - expected).mean()])

    options = {"ftol": 0.0, "gtol": 1e-10}  # the default tolerances leave four digits
    result = optimize.minimize(mean_nll, np.zeros(1), jac=True, method="L-BFGS-B", options=options)
    return float(np.exp(result.x[0]))


def scaled(probs: Floats, temperature: float) -> Floats:
    """Probabilities (N, K) at another temperature: softmax(log(probs) / temperature).

    The most likely class stays the most likely. At temperature 1 the same array is returned.

    Raises:
        InputError: the temperature is not a positive number.
    """
    check(temperature)
    if temperature == 1:
        return probs
    at_temperature: Floats = special.softmax(_logits(probs) / temperature, axis=1)
    return at_temperature


def check(temperature: float) -> None:
    """Check that a temperature is finite and above 0.

    Raises:
        InputError: it is not.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise InputError(f"the temperature is {temperature}; it must be a finite number above 0")


def _logits(probs: Floats) -> NDArray[np.float64]:
    # A softmax in float32 can underflow to 0; as in `classification.nll`.
    return np.log(np.maximum(probs.astype(np.float64), np.finfo(np.float32).tiny))


def _nll(logits: Floats, labels: Ints) -> NDArray[np.float64]:
    """(N,) negative log-likelihood of each image."""
    rows = special.log_softmax(logits, axis=1)
    return np.asarray(-np.take_along_axis(rows, labels[:, None], axis=1)[:, 0])
