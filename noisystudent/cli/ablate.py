"""The command about many runs: a matrix of recipes and seeds to one table."""

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
    """How a matrix is run."""

    out: Annotated[
        Path | None, Parameter(help="Folder of the runs and the table; default runs/<matrix>.")
    ] = None
    recipe: Annotated[str | None, Parameter(help="What all cells share, in place of the matrix's.")] = None
    seeds: Annotated[
        tuple[int, ...],
        Parameter(
            help="Every cell once for each; default: the recipe's.",
            consume_multiple=True,
            negative=(),
            show_default=False,
        ),
    ] = ()
    only: Annotated[
        tuple[str, ...],
        Parameter(help="Run these cells alone.", consume_multiple=True, negative=(), show_default=False),
    ] = ()
    processes: Annotated[int, Parameter(help="Runs at a time, each on its own share of cores or GPU.")] = 1
    all_labels: Annotated[
        Folders, Parameter(help="Labelled images with the truth of labels and pool: the gap to close.")
    ] = ()
    device: Annotated[str | None, Parameter(help="auto, or a torch device.")] = None


NO_SETTINGS = Settings()


def ablate(
    matrix: str, /, *, images: Images = NO_IMAGES, settings: Settings = NO_SETTINGS, fields: Fields
) -> None:
    """A matrix of overrides and seeds: what runs share is computed once; one table, CSV, JSON and page.

    Parameters
    ----------
    matrix
        An ablation recipe's name or a YAML file: `recipe`, `base` and `cells`.
    """
    from noisystudent.ablation.matrix import Asked, read

    if settings.processes < 1:
        raise InputError(f"--processes is {settings.processes}; at least 1")
    sets = {part.name: list(getattr(images, part.name)) for part in dataclasses.fields(images)}
    first = [("device", settings.device)] if settings.device is not None else []
    asked = Asked(
        recipe=settings.recipe,
        flags=[(f"data.{name}", folders) for name, folders in sets.items() if folders],
        fields=[*first, *fields],
        seeds=settings.seeds,
        only=settings.only,
        all_labels=settings.all_labels,
    )
    _ablate(read(matrix, asked), settings.out or Path("runs") / Path(matrix).stem, settings.processes)


def _ablate(matrix: Matrix, out: Path, processes: int) -> None:
    from noisystudent.ablation import output
    from noisystudent.ablation.study import study

    command = shlex.join(["noisystudent", *sys.argv[1:]])
    with screen.voice(out / "ablation.log") as (voice, stop):
        voice.say(f"ablation: {out}")
        content = study(matrix, out, processes=processes, command=command, stop=stop, voice=voice)
        screen.table(*output.lines(content))
        voice.say(f"page: {out / 'ablation.html'}")
    failed = [cell["name"] for cell in content["cells"] if cell["failed"]]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(content['cells'])} rows failed ({', '.join(failed)}); see above"
        )
