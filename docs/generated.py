"""Text of the pages that are made of the program itself: commands, fields and recipes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from noisystudent import recipes
from noisystudent.cli import app

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Table:
    """A table of a Markdown page: cells of its header and of its rows."""

    header: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        """Return the table as Markdown."""
        return "\n".join(
            f"| {' | '.join(cells)} |" for cells in (self.header, ["---"] * len(self.header), *self.rows)
        )


def tables(page: str, heading: str) -> Iterator[Table]:
    """Tables of one section of a page.

    Args:
        page: path of the page in the repository.
        heading: text of the heading of the section.

    Raises:
        ValueError: the page has no such heading.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    _, found, section = text.partition(f"\n## {heading}\n")
    if not found:
        raise ValueError(f"{page} has no heading {heading!r}")
    section = section.partition("\n## ")[0]
    for block in re.findall(r"(?:^\|.*\|\n)+", section, flags=re.MULTILINE):
        header, _, *rows = (
            [cell.strip() for cell in line.strip("| ").split(" |")] for line in block.splitlines()
        )
        yield Table(header, [row + [""] * (len(header) - len(row)) for row in rows])


def excerpt(page: str, heading: str, *starts: str) -> Table:
    """Rows of the first table of a section that has one whose first cell starts with `starts[0]`.

    Args:
        page: see `tables`.
        heading: see `tables`.
        *starts: beginnings of the first cell of each row that is wanted. None: all rows of the first table.

    Raises:
        ValueError: a row is missing.
    """
    for table in tables(page, heading):
        if not starts:
            return table
        if any(row[0].startswith(starts[0]) for row in table.rows):
            lost = [start for start in starts if not any(row[0].startswith(start) for row in table.rows)]
            if lost:
                raise ValueError(f"{page}, {heading}: no row starts with {lost}")
            return Table(table.header, [row for row in table.rows if row[0].startswith(starts)])
    raise ValueError(f"{page}, {heading}: no row starts with {starts}")


@dataclass(frozen=True)
class Measured:
    """Where the figures of a recipe are; see `excerpt`."""

    page: str
    heading: str
    starts: tuple[str, ...] = ()


_README = ("README.md", "Measured")
_FINDINGS, _RIVALS, _STUDIES = (
    ("docs/paper.md", heading) for heading in ("The relative findings", "The rivals", "The other studies")
)
_BEYOND = ("docs/paper.md", "Beyond the paper")
_BASE = "noisy student"

MEASURED = {
    "demo": Measured(*_README, ("digits",)),
    "cifar10-cpu": Measured(
        *_BEYOND,
        ("first teacher", "control of the same", "moving average with FreeMatch's thresholds", "all labels"),
    ),
    "cifar10-ablation": Measured(*_FINDINGS, ("teacher", "supervised", _BASE)),
    "ablation-judgements": Measured(*_FINDINGS),
    "ablation-noise": Measured(*_FINDINGS, (_BASE, "supervised", "pool images", "noised teacher")),
    "ablation-rivals": Measured(*_RIVALS),
    "ablation-iteration": Measured(*_STUDIES, (_BASE, "second iteration", "third iteration")),
    "ablation-teacher-size": Measured(*_STUDIES, (_BASE, "larger teacher")),
    "ablation-student-size": Measured(
        *_STUDIES, (_BASE, "supervised", "larger student (", "larger student, sup")
    ),
    "ablation-pool-size": Measured(*_STUDIES, (_BASE, "supervised", "a quarter of the pool", "a six")),
    "ablation-hard-soft": Measured(*_STUDIES, (_BASE, "soft", "hard, ")),
    "ablation-balancing": Measured(*_STUDIES, (_BASE, "unbalanced", "cut to", "larger student, unb")),
    "ablation-joint": Measured(*_STUDIES, (_BASE, "pool alone", "pool, then")),
    "ablation-ratio": Measured(*_STUDIES, (_BASE, "1 pool image", "3", "15")),
    "ablation-init": Measured(*_STUDIES, (_BASE, "from the teacher", "a quarter of the steps")),
    "ablation-threshold": Measured(*_STUDIES, (_BASE, "threshold none", "threshold 0")),
    "ablation-temperature": Measured(*_STUDIES, (_BASE, "temperature 0.5", "temperature 2", "hard labels")),
    "ablation-on-the-fly": Measured(*_STUDIES, ("stored or in the step",)),
    "ablation-loop": Measured(
        *_BEYOND,
        ("control of the same", "FixMatch", "FreeMatch", "stored labels", "moving average", "all labels"),
    ),
    "ablation-pretrained": Measured("docs/pretrained.md", "When the pool still helps", ("5", "20", "50")),
}
NOTES = {
    "photos": "Not measured with these weights. [The log](LOG.md) has one run with another backbone.",
    "ablation-folder": "Two cells are measured: [Beyond the paper](paper.md#beyond-the-paper).",
    "ablation-online": "Not measured in full. [The log](LOG.md) has one seed of 400 steps.",
}


def marked(text: str, special: str = "<") -> str:
    """A line with its flags as code, and with the characters `special` shown as they are.

    Spans of code stay as they are. A flag outside of code would begin with a dash in place of two hyphens.
    """
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(f"([{special}])", r"\\\1", part) for part in parts[::2]]
    parts[::2] = [re.sub(r"(?<![\w-])--[a-z][\w.-]*\w", r"`\g<0>`", part) for part in parts[::2]]
    return "".join(parts)


def commands() -> str:
    """Every command with its arguments and flags, from the parser of the command line."""
    text: str = app.generate_docs(output_format="markdown", usage_name="noisystudent")
    _, _, text = text.partition("\n## noisystudent run\n")
    return "\n".join(map(marked, f"## noisystudent run\n{text}".splitlines())) + "\n"


def fields() -> str:
    """Every field by its section; sections that several models have are shown once."""
    places: dict[str, list[str]] = {}
    rows: dict[str, list[list[str]]] = {}
    for name, default, meaning in recipes.field_help():
        place, _, field = name.rpartition(".")
        section = place.rpartition(".")[2]
        if place not in places.setdefault(section, []):
            places[section].append(place)
        if place == places[section][0]:
            shown = f"`{default}`" if default else ""
            rows.setdefault(section, []).append([f"`{field}`", shown, marked(meaning, "<*|")])
    return "\n".join(_section(section, places[section], rows[section]) for section in rows)


def _section(section: str, places: list[str], rows: list[list[str]]) -> str:
    """One section of the fields: where it can stand, and its table."""
    title = {"": "The run", "0": "An entry of `teachers`"}.get(section, f"`{section}`")
    names = ", ".join(f"`{place}.…`" for place in places if place) or "Without a prefix, such as `seed: 1`."
    return f"## {title}\n\n{names}\n\n{Table(['field', 'default', 'meaning'], rows)}\n"


def all_recipes() -> str:
    """Every recipe: what the head of its file says, its figures, and the file."""
    names = [*recipes.names(), *recipes.matrices()]
    overview = Table(["recipe", "what it is", "measured"], [_line(name) for name in names])
    return f"{overview}\n\n" + "\n".join(map(_recipe, names))


def _head(name: str) -> str:
    """The comments at the beginning of the file of a recipe, as Markdown."""
    lines = recipes.text(name).splitlines()
    end = next(place for place, line in enumerate(lines) if not line.startswith("#"))
    # A command is indented by two columns more than the text; in Markdown code needs four.
    return "\n".join(re.sub("^  ", "    ", line[1:].removeprefix(" ")) for line in lines[:end])


def _line(name: str) -> list[str]:
    """Row of the overview."""
    state = "yes" if name in MEASURED else "in part" if name in NOTES else "no"
    first = " ".join(_head(name).partition("\n\n")[0].split())
    return [f"[`{name}`](#{name})", marked(first, "<*|"), state]


def _recipe(name: str) -> str:
    """Section of one recipe."""
    lines = [f"({name})=", f"## {name}", "", _prose(_head(name)), ""]
    if name in MEASURED:
        source = MEASURED[name]
        page = source.page.removeprefix("docs/").replace("README.md", "results.md")
        where = f"From [{source.heading}]({page}), where the settings are:"
        lines += [where, "", str(excerpt(source.page, source.heading, *source.starts))]
    else:
        lines += [NOTES.get(name, "Not measured.")]
    yaml = f"```yaml\n{recipes.text(name)}```"
    return "\n".join([*lines, "", f"<details><summary>{name}.yaml</summary>", "", yaml, "", "</details>", ""])


def _prose(head: str) -> str:
    """The head with pages of the documentation as links."""
    lines = [line if line.startswith("    ") else marked(line) for line in head.splitlines()]
    linked = re.sub(r"docs/(\w+)\.md", r"[\1](\1.md)", "\n".join(lines))
    return linked.replace("in the README", "in the [results](results.md)")


PAGES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "fields": fields,
    "recipes": all_recipes,
}
