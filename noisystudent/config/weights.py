"""Weights of several teachers in the average of their probabilities, as a recipe gives them."""

from __future__ import annotations

import math

from noisystudent.errors import require

Weights = str | tuple[float, ...]
"""equal, val, or a number for each teacher."""


def check_weights(weights: Weights, count: int) -> None:
    """Check the weights of `count` teachers.

    Raises:
        InputError: there is not one for each teacher, one is below 0, or all are 0.
    """
    if isinstance(weights, str):
        return
    right = all(math.isfinite(weight) and weight >= 0 for weight in weights) and any(weights)
    require(
        right and len(weights) == count,
        f"teacher_weights is {list(weights)}; it must be equal, val, or a number for each of the {count}"
        " first teachers, at least 0 and not all 0",
    )


def normalized(weights: Weights, count: int) -> tuple[float, ...] | None:
    """Return the weights of `count` teachers, which sum to 1; None if they are chosen on val."""
    if weights == "val":
        return (1.0,) if count == 1 else None
    numbers = (1.0,) * count if isinstance(weights, str) else weights
    return tuple(number / math.fsum(numbers) for number in numbers)
