"""The command `ablate`: many runs in one table."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from noisystudent.cli import screen
from noisystudent.cli.fields import NO_IMAGES, Fields, Folders, Images
from noisystudent.errors import InputError, RunError

if TYPE_CHECKING:
    from noisystudent.ablation.matrix import Matrix


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of `ablate` besides the images."""

    out: Annotated[
        Path | None, Parameter(help="Output folder for runs and table. Default: runs/<matrix>.")
    ] = None
    recipe: Annotated[str | None, Parameter(help="Recipe to use instead of that of the matrix.")] = None
    seeds: Annotated[
        tuple[int, ...],
        Parameter(
            help="Seeds with which every cell is run. Default: the seed of the recipe.",
            consume_multiple=True,
            negative=(),
            show_default=False,
        ),
    ] = ()
    only: Annotated[
        tuple[str, ...],
        Parameter(help="Run only these cells.", consume_multiple=True, negative=(), show_default=False),
    ] = ()
    processes: Annotated[int, Parameter(help="Number of runs at a time; they share cores and GPUs.")] = 1
    worker: Annotated[
        bool,
        Parameter(
            help="Share the runs with all calls that have this flag, on any machines that share --out: each"
            " stage is made by one of them, and what one that died has begun by another.",
            negative=(),
        ),
    ] = False
    all_labels: Annotated[
        Folders,
        Parameter(help="Labelled and pool images with their true labels, for a run on all labels."),
    ] = ()
    device: Annotated[str | None, Parameter(help="auto, or a torch device such as cpu or cuda.")] = None


NO_SETTINGS = Settings()


def ablate(
    matrix: str, /, *, images: Images = NO_IMAGES, settings: Settings = NO_SETTINGS, fields: Fields
) -> None:
    """Run all cells of an ablation with all seeds, and write their results as HTML page, CSV and JSON.

    Stages that several runs share are made only once. A second call makes only what is missing or changed.

    Parameters
    ----------
    matrix
        Name of a shipped ablation, or a YAML file with `recipe`, `base` and `cells`.
    """
    from noisystudent.ablation.matrix import Overrides, read

    if settings.processes < 1:
        raise InputError(f"--processes is {settings.processes}; it must be at least 1")
    if settings.worker and settings.processes > 1:
        raise InputError(
            f"--processes is {settings.processes}, and --worker is given; start more workers instead, each of"
            " which makes one run at a time"
        )
    sets = {part.name: list(getattr(images, part.name)) for part in dataclasses.fields(images)}
    device = [("device", settings.device)] if settings.device is not None else []
    overrides = Overrides(
        recipe=settings.recipe,
        flags=[(f"data.{name}", folders) for name, folders in sets.items() if folders],
        fields=[*device, *fields],
        seeds=settings.seeds,
        only=settings.only,
        all_labels=settings.all_labels,
    )
    _ablate(read(matrix, overrides), settings.out or Path("runs") / Path(matrix).stem, settings)


def _ablate(matrix: Matrix, out: Path, settings: Settings) -> None:
    from noisystudent.ablation import output
    from noisystudent.ablation.matrix import run_name
    from noisystudent.ablation.study import study
    from noisystudent.console import Logged

    command = shlex.join(["noisystudent", *sys.argv[1:]])
    with screen.progress() as progress:
        content = study(
            matrix,
            out,
            processes=settings.processes,
            command=command,
            worker=settings.worker,
            progress=progress,
        )
        screen.table(*output.lines(content))
        Logged(progress, out / output.LOG).say(f"page: {out / output.PAGE}")
    # Runs are counted, not rows: a row has results as soon as one of its seeds has.
    runs = {run_name(cell["folder"], seed) for cell in content["cells"] for seed in content["seeds"]}
    failed = {run_name(cell["folder"], int(seed)) for cell in content["cells"] for seed in cell["failed"]}
    if failed:
        names = ", ".join(sorted(failed))
        raise RunError(f"{len(failed)} of {len(runs)} runs failed ({names}); see the table above")
