"""Build the HTML page of an ablation: a plot of paired differences, the table, single seeds and overrides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisystudent.report.templates import environment
from noisystudent.report.whiskers import whiskers
from noisystudent.run.files import write_text

Content = Mapping[str, Any]

# Keys that `whiskers` expects -> keys of a cell in ablation.json.
_KEYS = {"difference": "difference", "low": "difference_low", "high": "difference_high"}


def write_page(content: Content, out: Path) -> Path:
    """Write the page of an ablation.

    The page has no script and loads nothing. The same content always gives the same bytes.

    Args:
        content: content of ablation.json.
        out: HTML file to write.

    Returns:
        `out`.

    Raises:
        RunError: the file cannot be written.
    """
    cells = content["cells"]
    base = next(cell for cell in cells if cell["name"] == content["base"])
    differences = {str(index): _difference(cell, base) for index, cell in enumerate(cells)}
    page = (
        environment()
        .get_template("ablation.html")
        .render(
            content=content,
            cells=cells,
            optional={
                name for name in ("low", "gap_closed") if any(cell[name] is not None for cell in cells)
            },
            over={cell["over"] for cell in cells},
            whiskers=whiskers(differences),
        )
    )
    # Lone surrogates, from names that are not valid UTF-8 on disk, cannot be written to a UTF-8 file.
    write_text(out, page.encode("utf-8", "replace").decode("utf-8"))
    return out


def _difference(cell: Content, base: Content) -> dict[str, Any]:
    """Difference of a cell to the base, as input of `whiskers`. The base itself is a dot at 0."""
    if cell is base and cell["n"]:
        return {"difference": 0.0, "low": 0.0, "high": 0.0}
    row = {name: cell[key] for name, key in _KEYS.items()}
    seeds = [seed for seed in cell["per_seed"] if seed in base["per_seed"]]
    if cell["over"] == "seeds":
        row["each"] = [cell["per_seed"][seed] - base["per_seed"][seed] for seed in seeds]
    return row
