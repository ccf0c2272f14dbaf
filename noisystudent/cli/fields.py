"""Flags that several commands share, and their conversion to a checked `Config`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, Token, validators

from noisystudent.config.parse import parse
from noisystudent.errors import InputError
from noisystudent.evaluation.options import Options
from noisystudent.run.estimate import seconds_of

if TYPE_CHECKING:
    from noisystudent.config import Config

Field = tuple[str, Any]
"""(dotted name, value) of a configuration field."""

Fields = Annotated[list[Field], Parameter(parse=False)]
"""Configuration fields of a call. `main` passes them to every command that has this parameter."""

Folders = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True, show_default=False)]
Overwrite = Annotated[bool, Parameter(negative=(), help="Replace an existing file.")]
Device = Annotated[str, Parameter(help="auto, or a torch device such as cpu or cuda.")]
Flip = Annotated[
    bool,
    Parameter(negative=(), help="Average the probabilities over each image and its mirror image."),
]
Processes = Annotated[
    int | None,
    Parameter(
        help="Number of processes on this machine that share the run, one for each GPU. They are started by"
        " torchrun. Several machines: torchrun … -m noisystudent run …",
        validator=validators.Number(gte=1),
    ),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    Parameter(
        help="Number format. auto: bf16 on a GPU, fp32 on a CPU. A processor without bf16 uses fp32: a GPU"
        " below compute capability 8, a CPU without AMX or AVX512-BF16. No effect on an ONNX file."
    ),
]


def _names(_type: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    """Split values at commas; this is a converter of cyclopts."""
    parts = (part.strip() for token in tokens for part in token.value.split(","))
    return tuple(part for part in parts if part)


class Duration(float):
    """Seconds. The help of a flag shows this name as the kind of its value."""


Budget = Annotated[
    Duration | None,
    Parameter(
        converter=lambda _type, tokens: Duration(seconds_of(tokens[0].value, "--budget")),
        n_tokens=1,
        show_default=False,
        help="Time for the whole run, such as 90m, 2h or 1.5d. If the recipe takes longer, steps, ratio,"
        " networks and resolution become smaller until the run fits.",
    ),
]
Names = Annotated[tuple[str, ...], Parameter(converter=_names, n_tokens=1, negative=(), show_default=False)]
"""Several names, separated by commas."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Name, place, seed and device of a run."""

    out: Annotated[
        Path | None, Parameter(help="Run directory. An existing run is resumed. Default: runs/<name>.")
    ] = None
    name: Annotated[str | None, Parameter(help="Name of the run. Default: that of the recipe.")] = None
    seed: Annotated[int | None, Parameter(help="Seed of all random numbers.")] = None
    device: Annotated[str | None, Parameter(help="auto, or a torch device such as cpu or cuda.")] = None
    deterministic: Annotated[
        bool | None,
        Parameter(help="On a GPU, use only kernels that give the same bits each time. They are slower."),
    ] = None
    cache: Annotated[
        bool | None,
        Parameter(
            help="Decode all images once and store the pixels. Default: if the images are small enough."
        ),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Loop(Settings):
    """Settings of a run with students."""

    students: Annotated[int | None, Parameter(help="Number of students, trained one after the other.")] = None
    ensemble: Annotated[
        int | None, Parameter(help="Number of first teachers, whose probabilities are averaged.")
    ] = None
    teacher_weights: Annotated[
        Names,
        Parameter(
            help="Weights of several first teachers: equal, val (those with the smallest NLL on val), or a"
            " number for each, separated by commas."
        ),
    ] = ()
    folds: Annotated[
        int | None,
        Parameter(
            help="Number of further first teachers. Each is trained without one part of the labels, and"
            " predicts that part. Threshold and temperature are chosen by these predictions."
        ),
    ] = None
    choose: Annotated[
        bool | None,
        Parameter(
            help="With --folds: choose threshold, temperature and the weight decay of heads, or keep the"
            " given ones."
        ),
    ] = None
    keep_going: Annotated[
        bool | None,
        Parameter(
            help="Continue with a student as the next teacher even if it is worse on val than its teacher.",
            negative=(),
        ),
    ] = None
    control: Annotated[
        Names,
        Parameter(
            help="Models trained on the labels alone, to compare the last student with: same_steps,"
            " same_compute, linear_probe, or several, separated by commas; or none. Default: same_steps, and"
            " with pretrained weights linear_probe too."
        ),
    ] = ()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Logging:
    """How a run is followed while it runs."""

    log_format: Annotated[
        Literal["text", "json"],
        Parameter(
            help="Form of standard output: text, or one JSON object in each line: messages, progress,"
            " and the numbers of each finished stage."
        ),
    ] = "text"
    tracker: Annotated[
        Names,
        Parameter(
            help="Log the numbers of finished stages to mlflow, to wandb (offline), or to both, separated by"
            " a comma. The same call logs a finished run."
        ),
    ] = ()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Labels:
    """Folders of labelled images, and labels that are given apart from them."""

    labeled: Annotated[
        Folders,
        Parameter(help="Labelled images: folders <class>/<image>, tar shards, Parquet or .npz files."),
    ] = ()
    val: Annotated[
        Folders, Parameter(help="Labelled images for choices in the run. Default: a part of --labeled.")
    ] = ()
    test: Annotated[
        Folders, Parameter(help="Labelled images for the final evaluation. Default: --val is used.")
    ] = ()
    given_labels: Annotated[
        Folders,
        Parameter(
            help="CSV files with labels that replace those of labelled images, or label images of the pool."
            " `review` writes such files."
        ),
    ] = ()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Images(Labels):
    """Folders of labelled images and of the pool."""

    unlabeled: Annotated[
        Folders,
        Parameter(help="Unlabelled images (the pool): any folders, tar shards, Parquet or .npz files."),
    ] = ()


# cyclopts resolves the type hints of `Options` with the names of this module, so it needs `Path` here.
@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Tests(Options):
    """Flags of `evaluate` for the tests. The help texts are the docstrings of the fields of `Options`."""

    tests: Annotated[Names, Parameter(show_default=",".join)] = ("clean",)


# Default values of the parameters of the commands.
NO_SETTINGS, NO_LOOP, NO_LABELS, NO_IMAGES, NO_TESTS = Settings(), Loop(), Labels(), Images(), Tests()
TEXT = Logging()


def take_fields(tokens: Sequence[str]) -> tuple[list[Field], list[str]]:
    """Separate the configuration fields `--section.field VALUE` from the other arguments.

    Values are read as YAML, so that `true`, `3` and `[1, 2]` have the right types.

    Returns:
        The fields, and the arguments for the command itself.

    Raises:
        InputError: a field has no value, or the value is not valid YAML (see `parse`).
    """
    fields: list[Field] = []
    rest: list[str] = []
    queue = iter(tokens)
    for token in queue:
        name, equals, value = token.partition("=")
        if not (name.startswith("--") and "." in name):  # only configuration fields have a dot
            rest.append(token)
            continue
        if not equals:
            value = next(queue, "")
        if not value:
            raise InputError(f"{name} needs a value: {name} VALUE")
        # Cyclopts writes flags with hyphens, so they are allowed in field names, too.
        fields.append((name[2:].replace("-", "_"), parse(value, f"{name} {value!r}")))
    return fields, rest


def recorded(settings: Settings) -> Path | None:
    """The config.yaml of the run that --out names; None if --out is not given, or names no run yet."""
    from noisystudent.run.lock import MARKER
    from noisystudent.run.rundir import RunDir

    run = None if settings.out is None else RunDir(settings.out)
    # Without the marker the folder is not of a run, and the file is the user's.
    return run.config if run and run.config.is_file() and (run.path / MARKER).is_file() else None


def configure(
    recipe: str | None, settings: Settings, images: Labels, given: list[Field], *, default: str = "folder"
) -> tuple[Config, Path]:
    """Resolve the configuration of a call.

    Args:
        recipe: name of a recipe, or a YAML file. None: the recorded configuration of the run in --out,
            otherwise `default`.
        settings: flags that override the recipe.
        images: folders of the images.
        given: configuration fields, which override recipe and flags.
        default: recipe of a new run.

    Returns:
        The configuration and the run directory.
    """
    from noisystudent import recipes

    named: dict[str, Any] = {f"data.{part.name}": list(getattr(images, part.name)) for part in fields(images)}
    no_fields = ("out", "cache")  # all other settings are fields of the same name
    named |= {
        part.name: getattr(settings, part.name) for part in fields(settings) if part.name not in no_fields
    }
    weights: tuple[str, ...] = named.get("teacher_weights") or ()
    if len(weights) == 1:
        named["teacher_weights"] = weights[0]  # equal or val, or the number of a single teacher
    if settings.cache is not None:
        named["data.plane"] = "resident" if settings.cache else "streamed"
    # A flag that is not given is None or empty and must not override the recipe.
    flags = [(name, value) for name, value in named.items() if value not in (None, [], ())]
    before = recorded(settings) if recipe is None else None
    try:
        config = recipes.load(recipe or str(before or default), flags + given)
    except InputError as error:
        if before is None:
            raise
        raise InputError(f"{error}; or name a recipe, and {before} is written again from it") from error
    return config, settings.out or Path("runs") / config.name


def student_section(name: str, given: list[Field]) -> Any:
    """The section `name` of a student's configuration, with the fields of a call: `--name.field VALUE`."""
    from noisystudent import recipes

    overrides = [(f"student.{field}", value) for field, value in given]
    return getattr(recipes.resolve({"students": 1}, overrides, origin="command line").students[0], name)
