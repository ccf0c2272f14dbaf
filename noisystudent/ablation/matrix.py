"""From an ablation's YAML and the command line to cells, each a checked configuration and a model of it."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisystudent import recipes
from noisystudent.ablation.ceiling import ceiling
from noisystudent.config import Config
from noisystudent.errors import InputError, did_you_mean

Field = tuple[str, Any]
"""(dotted name, value)."""

Model = tuple[int, str]
"""(iteration, role) of a model of a run."""

TEACHER, CONTROL, ALL_LABELS = "teacher", "control", "all labels"
_KEYS = ("recipe", "base", "common", "cells")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A row of the table: a model of a configuration.

    Attributes:
        kind: cell, written in the matrix; reference, the base's teacher or control; ceiling, all labels.
        of: the model whose score it is.
        said: the overrides that make it, as written.
        folder: below the output folder; cells of equal configuration have one between them.
        config: for any seed.
    """

    name: str
    kind: str
    of: Model
    said: Mapping[str, Any]
    folder: str
    config: Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the command line adds to a matrix.

    Attributes:
        recipe: in place of the matrix's own.
        flags: where the images are; a cell's own `data` wins over it.
        fields: win over everything.
        seeds: none is the recipe's.
        only: names of the cells that are run; none is all.
        all_labels: labelled images that hold the truth of labels and pool.
    """

    recipe: str | None = None
    flags: Sequence[Field] = ()
    fields: Sequence[Field] = ()
    seeds: Sequence[int] = ()
    only: Sequence[str] = ()
    all_labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """Cells and seeds, and which of them are run.

    Attributes:
        cells: in the order of the table; the base's teacher and control first.
        base: what the others are compared with.
        common: overrides of every cell.
        only: the cells that are run.
    """

    name: str
    recipe: str
    cells: tuple[Cell, ...]
    base: Cell
    common: Mapping[str, Any]
    seeds: tuple[int, ...]
    only: tuple[Cell, ...]
    all_labels: tuple[str, ...]

    @property
    def supervised(self) -> Cell | None:
        """The base's control: what the labels alone give."""
        return next((c for c in self.cells if c.kind == "reference" and c.of[1] == CONTROL), None)

    @property
    def ceiling(self) -> Cell | None:
        """What all labels give, where they are known."""
        return next((cell for cell in self.cells if cell.kind == "ceiling"), None)

    def runs(self) -> list[tuple[str, str, int]]:
        """(run, cell folder, seed) of every run once; of each seed the base's first, as others share it."""
        folders = dict.fromkeys(cell.folder for cell in (self.base, *self.cells))
        return [(run_name(folder, seed), folder, seed) for seed in self.seeds for folder in folders]

    def config(self, folder: str, seed: int) -> Config:
        """Of one run."""
        found = next(cell.config for cell in self.cells if cell.folder == folder)
        return dataclasses.replace(found, seed=seed)

    def chosen(self) -> set[str]:
        """Names of the runs that are wanted."""
        return {run_name(cell.folder, seed) for cell in self.only for seed in self.seeds}


def run_name(folder: str, seed: int) -> str:
    """Of a run; its path below the output folder."""
    return f"{folder}/seed-{seed}"


def read(name: str, asked: Asked) -> Matrix:
    """Read a matrix and check every cell.

    Raises:
        InputError: not a matrix, no cells, a name that is not there, or a cell that is no configuration.
    """
    raw = recipes.read(name)
    if "cells" not in raw:
        raise InputError(f"{name} is the recipe of one run, without cells; noisystudent run {name} runs it")
    for key in raw:
        if key not in _KEYS:
            raise InputError(f"{name}: unknown key '{key}'{did_you_mean(str(key), _KEYS)}")
    written = _mapping(raw["cells"], f"{name}: cells")
    if not written:
        raise InputError(f"{name}: cells is empty; it maps the name of each cell to its overrides")
    recipe = asked.recipe or raw.get("recipe")
    if not isinstance(recipe, str):
        raise InputError(f"{name}: no recipe; write `recipe: NAME` or give --recipe")
    common = _ordered(_mapping(raw.get("common"), f"{name}: common"), f"{name}: common")
    fixed = recipes.load(recipe, [*asked.flags, *asked.fields])
    before = [*asked.flags, *common]
    cells = [_cell(name, recipe, key, said, before, asked.fields) for key, said in written.items()]
    cells = _shared(name, cells, {_slug(ALL_LABELS): "--all-labels"} if asked.all_labels else {})
    base = _base(name, raw.get("base"), cells)
    cells = [*_references(base), *cells, *_ceilings(base, asked.all_labels)]
    seeds = tuple(dict.fromkeys(asked.seeds)) or (fixed.seed,)
    only = _chosen(asked.only, cells)
    return Matrix(
        name=Path(name).stem,
        recipe=recipe,
        cells=tuple(cells),
        base=base,
        common=dict(common),
        seeds=seeds,
        only=only,
        all_labels=asked.all_labels,
    )


def _cell(
    matrix: str, recipe: str, key: object, written: Any, before: list[Field], after: Sequence[Field]
) -> Cell:
    if isinstance(key, bool) or not isinstance(key, str | int | float):
        raise InputError(f"{matrix}: cell {key!r} is not a name to YAML; put it in quotes")
    name = str(key)
    origin = f"{matrix}: cell {name!r}"
    if name in (TEACHER, CONTROL):
        raise InputError(f"{origin}: the base's {name} has a row of that name; choose another")
    said = dict(_mapping(written, origin))
    of = said.pop("of", None)
    overrides = [*before, *_ordered(said, origin), *after]
    try:
        config = recipes.resolve(recipes.read(recipe), overrides, origin)
    except InputError as error:
        raise InputError(f"{origin}: {str(error).removeprefix(f'{origin}: ')}") from error
    return Cell(
        name=name, kind="cell", of=_model(of, config, origin), said=said, folder=_slug(name), config=config
    )


def _mapping(value: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping | None):
        raise InputError(f"{what} is {value!r}; a mapping belongs there")
    return value or {}


def _ordered(said: Mapping[Any, Any], origin: str) -> list[Field]:
    """Overrides as fields, `students` last: within one mapping its differences win over `student`.

    Raises:
        InputError: an unknown key, or the seed.
    """
    known = [field.name for field in dataclasses.fields(Config)] + ["student"]
    for key in said:
        if key not in known:
            raise InputError(f"{origin}: unknown key '{key}'{did_you_mean(str(key), [*known, 'of'])}")
    if "seed" in said:
        raise InputError(f"{origin}: seed is {said['seed']!r}; every cell has the seeds of --seeds")
    return sorted(said.items(), key=lambda field: field[0] == "students")


def _model(of: Any, config: Config, origin: str) -> Model:
    """The model that a cell's `of` names; by default the last student."""
    last = len(config.students)
    known: dict[str, Model] = {TEACHER: (0, TEACHER)}
    known |= {f"student-{index}": (index, "student") for index in range(1, last + 1)}
    if last:
        known["student"] = known[f"student-{last}"]
    if last and config.control:
        known[CONTROL] = (last, CONTROL)
    chosen = ("student" if last else TEACHER) if of is None else of
    if chosen not in known:
        raise InputError(f"{origin}: of is {chosen!r}; one of {', '.join(sorted(known))}")
    return known[chosen]


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def _shared(matrix: str, cells: list[Cell], taken: dict[str, str]) -> list[Cell]:
    """The cells, those of equal configuration in the folder of the first of them.

    Raises:
        InputError: a name without a folder of its own.
    """
    for cell in cells:
        if not cell.folder:
            raise InputError(f"{matrix}: cell {cell.name!r} names no folder; give it a letter or a digit")
        if taken.setdefault(cell.folder, cell.name) != cell.name:
            raise InputError(
                f"{matrix}: cell {cell.name!r} would have the folder {cell.folder!r} of"
                f" {taken[cell.folder]!r}; rename one"
            )
    first: dict[str, str] = {}
    return [
        dataclasses.replace(cell, folder=first.setdefault(recipes.dump(cell.config), cell.folder))
        for cell in cells
    ]


def _base(matrix: str, name: Any, cells: list[Cell]) -> Cell:
    found = next((cell for cell in cells if name is None or cell.name == str(name)), None)
    if found is None:
        names = [cell.name for cell in cells]
        raise InputError(
            f"{matrix}: base is {name!r}, which is no cell{did_you_mean(str(name), names)};"
            f" cells: {', '.join(names)}"
        )
    return found


def _references(base: Cell) -> list[Cell]:
    """Rows that every table has: what the base's student learnt from, and its twin."""
    last = len(base.config.students)
    models: list[Model] = [(0, TEACHER)] + ([(last, CONTROL)] if last and base.config.control else [])
    return [dataclasses.replace(base, name=model[1], kind="reference", of=model, said={}) for model in models]


def _ceilings(base: Cell, folders: tuple[str, ...]) -> list[Cell]:
    if not folders:
        return []
    config = ceiling(base.config, folders)
    of = (0, TEACHER)
    return [Cell(name=ALL_LABELS, kind="ceiling", of=of, said={}, folder=_slug(ALL_LABELS), config=config)]


def _chosen(only: Sequence[str], cells: list[Cell]) -> tuple[Cell, ...]:
    names = [cell.name for cell in cells]
    for name in only:
        if name not in names:
            raise InputError(
                f"--only {name}: no such cell{did_you_mean(name, names)}; cells: {', '.join(names)}"
            )
    return tuple(cell for cell in cells if not only or cell.name in only)
