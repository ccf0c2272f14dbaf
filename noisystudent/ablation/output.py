"""Write the table of an ablation as JSON, CSV and HTML, and format it for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from noisystudent.report.ablation import write_page
from noisystudent.run.files import csv_lines, write_json, write_text

Row = tuple[str, ...]

PAGE = "ablation.html"
LOG = "ablation.log"

# Keys of a cell in ablation.json that are columns of ablation.csv.
_COLUMNS = (
    *("name", "of", "set", "n", "top1", "low", "high"),
    *("difference", "difference_low", "difference_high", "over", "p_value", "gap_closed"),
)


def write(content: Mapping[str, Any], out: Path) -> Path:
    """Write ablation.json, ablation.csv and ablation.html, each atomically; returns the path of the page."""
    write_json(out / "ablation.json", content)
    rows: list[Sequence[object]] = [(*_COLUMNS, "failed")]
    for cell in content["cells"]:
        values = ["" if cell[name] is None else cell[name] for name in _COLUMNS]
        rows.append([*values, "; ".join(_failures(cell))])
    write_text(out / "ablation.csv", "".join(csv_lines(rows)))
    return write_page(content, out / PAGE)


def lines(content: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Header and rows of the table for a terminal.

    The interval over seeds, the gap closed and the remarks are left out if they are empty in every row.
    """
    cells, level = content["cells"], f"{content['level']:.0%}"
    header = [
        "cell",
        "n",
        "set",
        "top-1",
        f"{level} over seeds",
        "minus base",
        level,
        "gap closed",
        "remarks",
    ]
    rows = [_line(cell, content["base"]) for cell in cells]
    optional = (4, 7, 8)
    kept = [i for i in range(len(header)) if i not in optional or any(row[i] for row in rows)]
    return tuple(header[i] for i in kept), [tuple(row[i] for i in kept) for row in rows]


def _line(cell: Mapping[str, Any], base: str) -> Row:
    mean, difference = cell["top1"], cell["difference"]
    over = {"images": " (images)", "seeds": ""}.get(cell["over"], "")
    return (
        cell["name"],
        str(cell["n"]),
        cell["set"] or "",
        "" if mean is None else f"{mean:.2%}",
        "" if cell["low"] is None else f"{100 * cell['low']:.2f} to {100 * cell['high']:.2f}",
        ("base" if cell["name"] == base else "") if difference is None else f"{100 * difference:+.2f}",
        ""
        if difference is None
        else f"{100 * cell['difference_low']:+.2f} to {100 * cell['difference_high']:+.2f}{over}",
        "" if cell["gap_closed"] is None else f"{cell['gap_closed']:.0%}",
        "; ".join(_remarks(cell)),
    )


def _remarks(cell: Mapping[str, Any]) -> list[str]:
    missing = ", ".join(map(str, cell["missing"]))
    return _failures(cell) + ([f"not run: seed {missing}"] if missing else [])


def _failures(cell: Mapping[str, Any]) -> list[str]:
    """One line for each reason, with the seeds that failed for this reason."""
    seeds: dict[str, list[str]] = {}
    for seed, reason in cell["failed"].items():
        seeds.setdefault(reason, []).append(seed)
    return [f"seed {', '.join(failed)} failed: {reason}" for reason, failed in seeds.items()]
