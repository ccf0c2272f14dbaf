"""An ablation's table as one HTML page: a plot of paired differences, the numbers, the seeds, the cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisystudent.report.page import environment
from noisystudent.report.whiskers import whiskers
from noisystudent.rundir import write_text

Content = Mapping[str, Any]

_KEYS = {"difference": "difference", "low": "difference_low", "high": "difference_high"}


def write_page(content: Content, out: Path) -> Path:
    """Write the page of an ablation.json; the same bytes for the same content, no script, no address.

    Args:
        content: what ablation.json holds.
        out: the HTML file.

    Returns:
        `out`.

    Raises:
        RunError: it cannot be written.
    """
    cells = content["cells"]
    base = next(cell for cell in cells if cell["name"] == content["base"])
    places = {str(number): _place(cell, base) for number, cell in enumerate(cells)}
    page = (
        environment()
        .get_template("ablation.html")
        .render(
            content=content,
            cells=cells,
            shown={name for name in ("low", "gap_closed") if any(cell[name] is not None for cell in cells)},
            over={cell["over"] for cell in cells},
            whiskers=whiskers(places),
        )
    )
    write_text(out, page.encode("utf-8", "replace").decode("utf-8"))
    return out


def _place(cell: Content, base: Content) -> dict[str, Any]:
    """Where a cell stands from the base: the base itself is a dot at 0."""
    if cell is base and cell["n"]:
        return {"difference": 0.0, "low": 0.0, "high": 0.0}
    place = {name: cell[key] for name, key in _KEYS.items()}
    seeds = [seed for seed in cell["per_seed"] if seed in base["per_seed"]]
    if cell["over"] == "seeds":
        place["each"] = [cell["per_seed"][seed] - base["per_seed"][seed] for seed in seeds]
    return place
