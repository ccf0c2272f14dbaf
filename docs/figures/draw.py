"""Draws the figures of the pages as SVG, for a light and a dark page: `python docs/figures/draw.py`.

Figures with numbers read them from the tables of README.md and of the pages.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the module below

from generated import excerpt

FOLDER = Path(__file__).parent
WIDTH = 720


@dataclass(frozen=True)
class Colors:
    """Colours of a page."""

    ink: str
    faint: str
    accent: str
    other: str


PAGES = {
    "light": Colors(ink="#1f2328", faint="#8c959f", accent="#0b62c4", other="#9a6700"),
    "dark": Colors(ink="#e6edf3", faint="#7d8590", accent="#6cb6ff", other="#e3b341"),
}


def text(x: float, y: float, words: str, color: str, *, anchor: str = "middle", bold: bool = False) -> str:
    """A line of text; (x, y) is its anchor on the base line."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, color: str, *, width: float = 1.5) -> str:
    """A straight line."""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{color}" stroke-width="{width}"/>'


def dot(x: float, y: float, color: str) -> str:
    """A point."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>'


def svg(height: float, parts: Sequence[str]) -> str:
    """The whole file."""
    font = 'font-family="system-ui, sans-serif" font-size="14"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" {font}>'
    return "\n".join([head, *parts, "</svg>", ""])


def number(cell: str) -> float:
    """The first number of a cell; the minus of the tables is a character of its own."""
    found = re.search(r"[+−-]?\d+(\.\d+)?", cell)
    if found is None:
        raise ValueError(f"{cell!r} has no number")
    return float(found[0].replace("−", "-"))


def box(x: float, y: float, title: str, detail: str, colors: Colors) -> str:
    """A box of the loop, 200 wide and 58 high, with its centre at (x, y)."""
    frame = f'<rect x="{x - 100:.1f}" y="{y - 29:.1f}" width="200" height="58" rx="8" fill="none"'
    words = text(x, y - 4, title, colors.ink, bold=True) + text(x, y + 16, detail, colors.faint)
    return f'{frame} stroke="{colors.ink}" stroke-width="1.5"/>{words}'


def arrow(path: str, color: str) -> str:
    """An arrow along a path."""
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.5" marker-end="url(#tip)"/>'


def loop(colors: Colors) -> str:
    """The loop: boxes and arrows, without numbers."""
    left, middle, right, top, bottom = 110, 360, 610, 104, 232
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"'
        ' orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{colors.accent}"/></marker></defs>'
    )
    parts = [
        tip,
        text(left, 24, "labelled images", colors.ink),
        arrow(f"M{left} 34V{top - 33}", colors.accent),
        text(middle, 24, "pool of unlabelled images", colors.ink),
        arrow(f"M{middle} 34V{top - 33}", colors.accent),
        box(left, top, "teacher", "trained with noise", colors),
        box(middle, top, "pseudo-labels", "clean images, no noise", colors),
        box(right, top, "selection", "confident, balanced", colors),
        box(middle, bottom, "student", "labels and pool, with noise", colors),
        box(right, bottom, "control", "the labels alone", colors),
        arrow(f"M{left + 104} {top}H{middle - 104}", colors.accent),
        arrow(f"M{middle + 104} {top}H{right - 104}", colors.accent),
        arrow(
            f"M{right} {top + 33}C{right} {top + 70} {middle + 40} {top + 50} {middle + 40} {bottom - 33}",
            colors.accent,
        ),
        arrow(f"M{middle - 104} {bottom}H{left}V{top + 33}", colors.accent),
        text(left + 14, bottom - 12, "the next teacher", colors.faint, anchor="start"),
        text(
            (middle + right) / 2,
            bottom + 62,
            "verdict: the last student − the first teacher, and − its control",
            colors.ink,
        ),
        arrow(f"M{middle} {bottom + 33}V{bottom + 46}", colors.accent),
        arrow(f"M{right} {bottom + 33}V{bottom + 46}", colors.accent),
    ]
    return svg(bottom + 74, parts)


def students(colors: Colors) -> str:
    """Top-1 of teacher, students and control, from the table of results in README.md."""
    table = excerpt("README.md", "Measured", "digits", "CIFAR-10, 1,000 labels")
    parts, places = [], ["teacher", "student 1", "2", "3"]
    for panel, row in enumerate(table.rows):
        cells = dict(zip(table.header, row, strict=True))
        values = [number(cells[name]) for name in places if cells[name]]
        control = number(cells["control"])
        low, high = min(*values, control), max(*values, control)
        left, wide = 40 + panel * 360, 250

        def up(value: float, low: float = low, high: float = high) -> float:
            return 190 - 110 * (value - low) / (high - low)

        step = wide / (len(values) - 1)
        spots = [(left + 20 + place * step, up(value)) for place, value in enumerate(values)]
        parts.append(
            text(
                left,
                28,
                re.split(r"[;:]", row[0])[0].split(", pool")[0],
                colors.ink,
                anchor="start",
                bold=True,
            )
        )
        parts += [line(*a, *b, colors.accent) for a, b in itertools.pairwise(spots)]
        parts += [dot(x, y, colors.accent) for x, y in spots]
        parts += [
            text(x, y - 12, f"{value:.1f}", colors.ink) for (x, y), value in zip(spots, values, strict=True)
        ]
        names = ["teacher", *(f"student {place}" for place in range(1, len(values)))]
        parts += [text(x, 226, name, colors.faint) for (x, _), name in zip(spots, names, strict=True)]
        x, y = spots[-1][0], up(control)
        parts += [
            dot(x, y, colors.other),
            text(x, y + 22, f"control {control:.1f}", colors.other),
        ]
    parts.append(text(WIDTH / 2, 256, "Test top-1 in percent; the two scales differ.", colors.faint))
    return svg(268, parts)


@dataclass(frozen=True)
class Whisker:
    """A difference with its interval."""

    name: str
    cell: str
    """As in the table, such as '+1.37 (+0.58 to +2.17)'."""

    @property
    def interval(self) -> tuple[float, float, float]:
        """Value, lower and upper bound."""
        value, _, bounds = self.cell.partition("(")
        low, _, high = bounds.partition(" to ")
        return number(value), number(low), number(high)


def whiskers(rows: Sequence[Whisker], caption: str, colors: Colors) -> str:
    """Differences with their intervals, one below the other, and a line at 0."""
    least = min(0.0, *(row.interval[1] for row in rows))
    most = max(0.0, *(row.interval[2] for row in rows))
    left, right = 330, WIDTH - 70

    def along(value: float) -> float:
        return left + (right - left) * (value - least) / (most - least)

    bottom = 20 + 30 * len(rows)
    parts = [line(along(0), 8, along(0), bottom, colors.faint, width=1)]
    for place, row in enumerate(rows):
        y = 26 + 30 * place
        value, low, high = row.interval
        color = colors.ink if low <= 0 <= high else colors.accent if low > 0 else colors.other
        parts += [
            text(310, y + 5, row.name, colors.ink, anchor="end"),
            line(along(low), y, along(high), y, color, width=2),
            dot(along(value), y, color),
            text(WIDTH - 4, y + 5, row.cell.partition(" ")[0], colors.ink, anchor="end"),
        ]
    parts.append(text(WIDTH / 2, bottom + 24, caption, colors.faint))
    return svg(bottom + 36, parts)


def choices(colors: Colors) -> str:
    """What single choices change, from the tables of docs/paper.md."""
    findings, studies = "The relative findings", "The other studies"
    cells = (
        (findings, "pool images without any noise", "no noise on pool images"),
        (findings, "noised teacher", "noised teacher"),
        (studies, "larger teacher", "larger teacher"),
        (findings, "larger student", "larger student"),
        (findings, "second iteration", "second iteration"),
        (studies, "a quarter of the pool", "a quarter of the pool"),
        (studies, "a sixteenth", "a sixteenth of the pool"),
        (studies, "1 pool image a label", "1 pool image a label (base: 7)"),
        (studies, "threshold none", "no threshold (base: 0.7)"),
        (studies, "threshold 0.3", "threshold 0.3"),
        (studies, "threshold 0.9", "threshold 0.9"),
        (studies, "temperature 0.5", "temperature 0.5 (base: 1)"),
        (studies, "hard labels", "hard labels"),
        (studies, "unbalanced", "classes not balanced"),
    )
    rows = []
    for heading, start, name in cells:
        table = excerpt("docs/paper.md", heading, start)
        rows.append(Whisker(name, table.rows[0][table.header.index("minus noisy student")]))
    return whiskers(rows, "Points of top-1 over the base run, with 95 % intervals over three seeds.", colors)


def labels(colors: Colors) -> str:
    """What the pool adds to a linear probe, by labels a class, from the table of docs/pretrained.md."""
    table = excerpt("docs/pretrained.md", "When the pool still helps", "5", "20", "50")
    column = table.header.index("student − probe")
    rows = [Whisker(f"{row[0]} labels a class", row[column]) for row in table.rows]
    return whiskers(
        rows, "Points of top-1 over a linear probe, with 95 % intervals over test images.", colors
    )


FIGURES: dict[str, Callable[[Colors], str]] = {
    "loop": loop,
    "students": students,
    "choices": choices,
    "labels": labels,
}


def files() -> dict[Path, str]:
    """Path and content of every figure."""
    return {
        FOLDER / f"{name}-{page}.svg": draw(colors)
        for name, draw in FIGURES.items()
        for page, colors in PAGES.items()
    }


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")
