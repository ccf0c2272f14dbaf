"""Read the YAML file of an ablation into cells, each with a checked configuration and the model to score."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisystudent import recipes
from noisystudent.ablation.oracle import oracle
from noisystudent.config import Config
from noisystudent.config.controls import trained_controls
from noisystudent.config.run import trained_teachers
from noisystudent.errors import InputError, did_you_mean
from noisystudent.run.rundir import CONTROLS

Field = tuple[str, Any]
"""(dotted name, value)."""

Model = tuple[int, str]
"""(iteration, role) of a model of a run."""

TEACHER, ALL_LABELS = "teacher", "all labels"
_KEYS = ("recipe", "base", "common", "cells")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A row of the table: one model of one configuration.

    Attributes:
        kind: cell: written in the matrix. reference: of the base. oracle: its control, on all labels.
        of: the model whose scores are in the row.
        overrides: differences to the recipe, as written in the matrix.
        folder: folder of its runs in the output folder. Cells with equal configurations share one.
        config: configuration, with any seed.
    """

    name: str
    kind: str
    of: Model
    overrides: Mapping[str, Any]
    folder: str
    config: Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Overrides:
    """What the command line adds to a matrix.

    Attributes:
        recipe: recipe used instead of the one in the matrix.
        flags: folders of the images. The `data` of a cell overrides them.
        fields: configuration fields that override everything else.
        seeds: seeds of every cell. Empty: the seed of the recipe.
        only: names of the cells that are run. Empty: all cells.
        all_labels: folders with the labelled images and the pool images, all with their true labels.
    """

    recipe: str | None = None
    flags: Sequence[Field] = ()
    fields: Sequence[Field] = ()
    seeds: Sequence[int] = ()
    only: Sequence[str] = ()
    all_labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """Cells and seeds of an ablation, and the cells that are run.

    Attributes:
        recipe: recipe that the overrides apply to.
        cells: rows in the order of the table. Teacher and control of the base come first.
        base: cell that the others are compared with.
        common: overrides of every cell, as written.
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
        """The control of the base: that of the same steps if it has both. None if it has none."""
        return next((c for c in self.cells if c.kind == "reference" and c.of[1] != TEACHER), None)

    @property
    def oracle(self) -> Cell | None:
        """The row trained on all true labels. None if `all_labels` is empty."""
        return next((cell for cell in self.cells if cell.kind == "oracle"), None)

    def runs(self) -> list[tuple[str, str, int]]:
        """(run, cell folder, seed) of every run, each once.

        For each seed, the run of the base comes first, because other cells share most stages with it.
        """
        folders = dict.fromkeys(cell.folder for cell in (self.base, *self.cells))
        return [(run_name(folder, seed), folder, seed) for seed in self.seeds for folder in folders]

    def config(self, folder: str, seed: int) -> Config:
        """Configuration of one run."""
        config = next(cell.config for cell in self.cells if cell.folder == folder)
        return dataclasses.replace(config, seed=seed)

    def chosen(self) -> set[str]:
        """Names of the runs of the cells in `only`."""
        return {run_name(cell.folder, seed) for cell in self.only for seed in self.seeds}


def run_name(folder: str, seed: int) -> str:
    """Name of a run, which is also its path in the output folder."""
    return f"{folder}/seed-{seed}"


def read(name: str, given: Overrides) -> Matrix:
    """Read the matrix of a shipped ablation or a YAML file, and check the configuration of every cell.

    Raises:
        InputError: the file is not a matrix, it has no cells, a name in it does not exist, or a configuration
            is not valid.
    """
    raw = recipes.read(name)
    if "cells" not in raw:
        raise InputError(f"{name} is the recipe of one run, without cells; use `noisystudent run {name}`")
    for key in raw:
        if key not in _KEYS:
            raise InputError(f"{name}: unknown key '{key}'{did_you_mean(str(key), _KEYS)}")
    written = _mapping(raw["cells"], f"{name}: cells")
    if not written:
        raise InputError(f"{name}: cells is empty; it maps the name of each cell to its overrides")
    recipe = given.recipe or raw.get("recipe")
    if not isinstance(recipe, str):
        raise InputError(f"{name}: recipe is missing; write `recipe: NAME` or give --recipe")
    common = _ordered(_mapping(raw.get("common"), f"{name}: common"), f"{name}: common")
    # The recipe without a cell gives the seed. A wrong flag or field is reported here, without naming a cell.
    config = recipes.load(recipe, [*given.flags, *given.fields])
    cells = [
        _cell(name, recipe, key, overrides, around=([*given.flags, *common], given.fields))
        for key, overrides in written.items()
    ]
    cells = _with_shared_folders(name, cells, {_slug(ALL_LABELS): "--all-labels"} if given.all_labels else {})
    base = _base(name, raw.get("base"), cells)
    cells = [*_references(base), *cells, *([_oracle(base, given.all_labels)] if given.all_labels else [])]
    seeds = tuple(dict.fromkeys(given.seeds)) or (config.seed,)
    only = _chosen(given.only, cells)
    return Matrix(
        name=Path(name).stem,
        recipe=recipe,
        cells=tuple(cells),
        base=base,
        common=dict(common),
        seeds=seeds,
        only=only,
        all_labels=given.all_labels,
    )


def _cell(
    matrix: str, recipe: str, key: object, written: Any, *, around: tuple[Sequence[Field], Sequence[Field]]
) -> Cell:
    if isinstance(key, bool) or not isinstance(key, str | int | float):
        raise InputError(f"{matrix}: cell {key!r} is not text in YAML; put the name in quotes")
    name = str(key)
    origin = f"{matrix}: cell {name!r}"
    if name in (TEACHER, *CONTROLS.values()):
        raise InputError(f"{origin}: this is the name of the row of the base's {name}; choose another name")
    overrides = dict(_mapping(written, origin))
    of = overrides.pop("of", None)
    fields = [("keep_going", True), *around[0], *_ordered(overrides, origin), *around[1]]
    try:
        config = recipes.resolve(recipes.read(recipe), fields, origin)
    except InputError as error:  # some messages begin with the origin, others do not
        raise InputError(f"{origin}: {str(error).removeprefix(f'{origin}: ')}") from error
    return Cell(
        name=name,
        kind="cell",
        of=_model(of, config, origin),
        overrides=overrides,
        folder=_slug(name),
        config=config,
    )


def _mapping(value: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping | None):
        raise InputError(f"{what} is {value!r}; it must be a mapping")
    return value or {}


def _ordered(overrides: Mapping[Any, Any], origin: str) -> list[Field]:
    """Overrides as a list of fields, with `students` last.

    Later fields override earlier ones, so what a mapping has under `students` overrides its `student`.

    Raises:
        InputError: a key is unknown, or it is `seed`.
    """
    # `student` is no field of Config: `recipes.resolve` applies it to every student.
    known = [field.name for field in dataclasses.fields(Config)] + ["student"]
    for key in overrides:
        if key not in known:
            raise InputError(f"{origin}: unknown key '{key}'{did_you_mean(str(key), [*known, 'of'])}")
    if "seed" in overrides:
        raise InputError(
            f"{origin}: seed is {overrides['seed']!r}; every cell is run with the seeds of --seeds"
        )
    return sorted(overrides.items(), key=lambda field: field[0] == "students")


def _model(of: Any, config: Config, origin: str) -> Model:
    """The model named by `of` of a cell. None: the last student, or the teacher if there are no students."""
    last = len(config.students)
    known: dict[str, Model] = {f"student-{index}": (index, "student") for index in range(1, last + 1)}
    known |= {role: (index, role) for index, role in [(last, "student")][:last] + _compared(config)}
    chosen = ("student" if last else TEACHER) if of is None else of
    if chosen not in known:
        raise InputError(f"{origin}: of is {chosen!r}; choose one of {', '.join(sorted(known))}")
    return known[chosen]


def _slug(name: str) -> str:
    """A name in lower-case ASCII letters, digits and hyphens, for a folder."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def _with_shared_folders(matrix: str, cells: list[Cell], taken: dict[str, str]) -> list[Cell]:
    """The cells; those with equal configurations get the folder of the first of them.

    Raises:
        InputError: two names give the same folder, a name gives none, or the folder is already in `taken`.
    """
    for cell in cells:
        if not cell.folder:
            raise InputError(
                f"{matrix}: cell {cell.name!r} gives no folder name; add an ASCII letter or a digit"
            )
        if taken.setdefault(cell.folder, cell.name) != cell.name:
            raise InputError(
                f"{matrix}: cell {cell.name!r} would have the same folder {cell.folder!r} as"
                f" {taken[cell.folder]!r}; rename one of them"
            )
    # Equal configurations are recognised by their YAML, in which all fields are in the same order.
    first: dict[str, str] = {}
    return [
        dataclasses.replace(cell, folder=first.setdefault(recipes.dump(cell.config), cell.folder))
        for cell in cells
    ]


def _base(matrix: str, name: Any, cells: list[Cell]) -> Cell:
    """The cell called `name`, or the first cell if `name` is None."""
    base = next((cell for cell in cells if name is None or cell.name == str(name)), None)
    if base is None:
        names = [cell.name for cell in cells]
        raise InputError(
            f"{matrix}: base is {name!r}, which is not a cell{did_you_mean(str(name), names)};"
            f" choose one of {', '.join(names)}"
        )
    return base


def _references(base: Cell) -> list[Cell]:
    """Rows that every table has: the teacher of the base and its controls, if its runs train them."""
    row = dataclasses.replace(base, kind="reference", overrides={})
    return [dataclasses.replace(row, name=of[1], of=of) for of in _compared(base.config)]


def _compared(config: Config) -> list[Model]:
    """The first teacher, if one is trained, and the controls, that of the same steps first."""
    teachers = [(0, TEACHER)] if trained_teachers(config) else []
    last, trained = len(config.students), trained_controls(config)
    return [*teachers, *((last, role) for kind, role in CONTROLS.items() if kind in trained)]


def _oracle(base: Cell, folders: tuple[str, ...]) -> Cell:
    cell = dataclasses.replace(base, name=ALL_LABELS, kind="oracle", of=(0, TEACHER), overrides={})
    return dataclasses.replace(cell, folder=_slug(ALL_LABELS), config=oracle(base.config, folders))


def _chosen(only: Sequence[str], cells: list[Cell]) -> tuple[Cell, ...]:
    """The cells whose names are in `only`, or all cells if it is empty."""
    names = [cell.name for cell in cells]
    for name in only:
        if name not in names:
            raise InputError(
                f"--only {name}: no such cell{did_you_mean(name, names)}; choose one of {', '.join(names)}"
            )
    return tuple(cell for cell in cells if not only or cell.name in only)
