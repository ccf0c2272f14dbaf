"""The Jinja environment of the pages, and how numbers are written in them."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from noisystudent.report.figures import finite

NO_NUMBER = "–"


def environment() -> Environment:
    """Jinja environment for the templates in this folder. Every value in a template is escaped."""
    templates = Environment(
        loader=PackageLoader("noisystudent.report", "."),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name in a template is an error, not empty text
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        percent=percent,
        signed=signed,
        decimals=decimals,
        count=count,
        p_value=p_value,
        reason=reason,
        sha256=_sha256,
    )
    return templates


def percent(value: Any, digits: int = 2, unit: str = "\u202f%") -> str:
    """Format a share in per cent, 0.9132 -> 91.32 %, with a narrow space that does not break."""
    number = finite(value)
    return NO_NUMBER if number is None else f"{100 * number:.{digits}f}{unit}".replace("-", "−")


def signed(value: Any, digits: int = 2) -> str:
    """Format a difference of shares in percentage points, 0.0132 -> +1.32."""
    number = finite(value)
    return NO_NUMBER if number is None else f"{100 * number:+.{digits}f}".replace("-", "−")


def decimals(value: Any, digits: int = 3) -> str:
    """Format a number with a fixed number of decimals, 0.04217 -> 0.042."""
    number = finite(value)
    return NO_NUMBER if number is None else f"{number:.{digits}f}"


def count(value: Any) -> str:
    """Format a count, 50000 -> 50,000."""
    number = finite(value)
    return NO_NUMBER if number is None else f"{number:,.0f}"


def p_value(value: Any) -> str:
    """Format a p-value with two significant digits, 0.00012 -> 'p = 0.00012'. It is never shown as 0."""
    number = finite(value)
    if number is None:
        return f"p {NO_NUMBER}"
    if number < 1e-6:
        return "p < 0.000001"
    return f"p = {number:.{max(2, 1 - math.floor(math.log10(number)))}f}"


def reason(image: Mapping[str, Any]) -> str:
    """Why a pool image was kept or not, in words; older runs do not say why not."""
    why = str(image.get("reason") or ("kept" if image["kept"] else "not kept")).replace("_", " ")
    return f"{why}, marked as junk" if image.get("junk") and why != "junk" else why


def _sha256(script: str) -> str:
    """Source expression of a Content-Security-Policy that allows this script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
