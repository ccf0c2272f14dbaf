"""Compute the dot-and-whisker figure of paired differences, which is plain HTML and needs no JavaScript."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from noisystudent.report.figures import finite
from noisystudent.report.read import Record


def whiskers(comparisons: Mapping[str, Record]) -> dict[str, Any]:
    """Convert paired differences and their intervals to positions on one common axis.

    Args:
        comparisons: name -> record with `difference`, `low` and `high`, as shares of the images. It may also
            have `each`, a list of single differences, for example one for each seed.

    Returns:
        `rows`: name -> positions `low`, `dot` and `width`, and `each` if it was given. `ticks`: pairs of a
        position and its value in percentage points. `decimals`: decimals that the tick values need.
        Positions are in per cent of the axis width. A comparison without an interval has no row.
    """
    ends = [finite(row.get(key)) for row in comparisons.values() for key in ("low", "high", "difference")]
    ends += [finite(one) for row in comparisons.values() for one in row.get("each", ())]
    values = [0.0, *(100 * end for end in ends if end is not None)]
    low, high = min(values), max(values)
    step = _nice_step((high - low) / 4)  # about four ticks
    # Ticks at multiples of the step, from below the smallest to above the largest value, and at least two.
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)

    def position(value: float) -> float:
        return round(100 * (value / step - first) / (last - first), 2)

    rows: dict[str, dict[str, Any]] = {}
    for name, row in comparisons.items():
        left, dot, right = (finite(row.get(key)) for key in ("low", "difference", "high"))
        if left is not None and dot is not None and right is not None:
            start = position(100 * left)
            width = round(position(100 * right) - start, 2)
            each = [position(100 * one) for one in row.get("each", ())]
            rows[name] = {"low": start, "dot": position(100 * dot), "width": width}
            rows[name] |= {"each": each} if each else {}
    ticks = [(position(i * step), round(i * step, 10)) for i in range(first, last + 1)]
    return {"rows": rows, "ticks": ticks, "decimals": max(0, -math.floor(math.log10(step) + 1e-9))}


def _nice_step(size: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten. A size of 0 gives 1."""
    if size <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(size))
    # The tolerance absorbs rounding errors, as in 0.30000000000000004 for 0.3.
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= size * (1 - 1e-9))
