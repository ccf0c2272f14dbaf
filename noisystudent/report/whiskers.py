"""The dot-and-whisker figure of paired differences: plain HTML, so that it shows without JavaScript."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from noisystudent.report.figures import finite
from noisystudent.report.read import Record


def whiskers(comparisons: Mapping[str, Record]) -> dict[str, Any]:
    """Place each paired difference and its interval on one axis, in per cent of the axis width.

    Args:
        comparisons: name to difference, low, high and, where there are several, `each` of them.

    Returns:
        `rows` {name: {low, dot, width}, and each where given}, `ticks` [(position, value in percentage
        points)] and `decimals`, how many the values of the ticks need.
    """
    ends = [finite(row.get(key)) for row in comparisons.values() for key in ("low", "high", "difference")]
    ends += [finite(one) for row in comparisons.values() for one in row.get("each", ())]
    values = [0.0, *(100 * end for end in ends if end is not None)]
    low, high = min(values), max(values)
    step = _nice_step((high - low) / 4)
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
    """Round up to 1, 2 or 5 times a power of ten."""
    if size <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(size))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= size * (1 - 1e-9))
