"""From the words of a call to a checked `Config`: sets of images, settings, and `--section.field VALUE`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from cyclopts import Parameter

from noisystudent.errors import InputError

if TYPE_CHECKING:
    from noisystudent.config import Config

Field = tuple[str, Any]
"""(dotted name, value)."""

Fields = Annotated[list[Field], Parameter(parse=False)]
"""The fields of this call, which `main` hands to a command that asks for them."""

Folders = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True, show_default=False)]
Overwrite = Annotated[bool, Parameter(negative=(), help="Replace an existing file.")]
Device = Annotated[str, Parameter(help="auto, or a torch device.")]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    Parameter(help="Of the model; auto is bf16 on a GPU and fp32 on a CPU. An ONNX file has its own."),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is called, and where it takes place."""

    out: Annotated[
        Path | None, Parameter(help="Run directory; default runs/<name>. An existing one is gone on with.")
    ] = None
    name: Annotated[str | None, Parameter(help="Names the run directory; default: the recipe's.")] = None
    seed: Annotated[int | None, Parameter(help="Everything random follows from it.")] = None
    device: Annotated[str | None, Parameter(help="auto, or a torch device.")] = None
    cache: Annotated[
        bool | None,
        Parameter(help="Decode every image once, into memory-mapped squares. Default: where they fit."),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Loop(Settings):
    """Settings of a run with students."""

    students: Annotated[int | None, Parameter(help="How many students, one after the other.")] = None
    ensemble: Annotated[
        int | None, Parameter(help="How many first teachers, whose probabilities are averaged.")
    ] = None
    control: Annotated[
        bool | None, Parameter(help="Train the last student's twin on labels alone, to compare with.")
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labelled images."""

    labeled: Annotated[
        Folders, Parameter(help="Labelled images: <class>/<image> folders, tar shards, Parquet, .npz.")
    ] = ()
    val: Annotated[
        Folders, Parameter(help="Labelled images for choices; split off the labels when not given.")
    ] = ()
    test: Annotated[Folders, Parameter(help="Labelled images for the verdict.")] = ()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Images(Labels):
    """Labelled images and the pool."""

    unlabeled: Annotated[
        Folders, Parameter(help="The pool: any nested folders, tar shards, Parquet, .npz.")
    ] = ()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Tests:
    """What a model is tested on, and how."""

    tests: Annotated[
        str,
        Parameter(help="Some of clean, calibration, c, p, fgsm, pgd, a, r, v2, sketch, real, with commas."),
    ] = "clean"
    fast: Annotated[
        bool, Parameter(help="Severities 1, 3 and 5, on a stratified sample of 1,000 images.")
    ] = False
    frost: Annotated[
        Path | None, Parameter(help="Folder of frost1.png … frost5.jpg, that the corruption frost needs.")
    ] = None
    real_labels: Annotated[Path | None, Parameter(help="ReaL's real.json; default: timm's copy.")] = None
    t5d: Annotated[
        Path | None,
        Parameter(
            help="JSON of AlexNet's top-5 distance by perturbation, to normalise p's; none is published."
        ),
    ] = None
    jpeg: Annotated[
        bool, Parameter(help="Save generated corruptions as JPEG of quality 85 first, as ImageNet-C was.")
    ] = False
    source_size: Annotated[
        int | None,
        Parameter(help="Make c and p at 32, 64, 224 or 299 pixels, then resize; default: the model's view."),
    ] = None
    write: Annotated[
        Path | None,
        Parameter(
            help="Folder for generated corruptions: like CIFAR-10-C below 224 pixels, else ImageNet-C."
        ),
    ] = None
    seed: Annotated[int, Parameter(help="Of everything random.")] = 0


NO_SETTINGS, NO_LOOP, NO_LABELS, NO_IMAGES, NO_TESTS = Settings(), Loop(), Labels(), Images(), Tests()


def take_fields(tokens: Sequence[str]) -> tuple[list[Field], list[str]]:
    """Set aside `--section.field VALUE` pairs; what is left is for the command itself.

    Raises:
        InputError: a field without a value, or a value that is not YAML.
    """
    found: list[Field] = []
    rest: list[str] = []
    queue = iter(tokens)
    for token in queue:
        name, equals, value = token.partition("=")
        if not (name.startswith("--") and "." in name):
            rest.append(token)
            continue
        if not equals:
            value = next(queue, "")
        if not value:
            raise InputError(f"{name} needs a value: {name} VALUE")
        try:
            found.append((name[2:].replace("-", "_"), yaml.safe_load(value)))
        except yaml.YAMLError as error:
            raise InputError(f"{name} {value!r} is not valid YAML") from error
    return found, rest


def configure(recipe: str, settings: Settings, images: Labels, given: list[Field]) -> tuple[Config, Path]:
    """The configuration a call asks for, and its run directory; `given` wins over flags, they over recipe."""
    from noisystudent import recipes

    named: dict[str, Any] = {f"data.{part.name}": list(getattr(images, part.name)) for part in fields(images)}
    apart = ("out", "cache")
    named |= {part.name: getattr(settings, part.name) for part in fields(settings) if part.name not in apart}
    if settings.cache is not None:
        named["data.plane"] = "resident" if settings.cache else "streamed"
    said = [(name, value) for name, value in named.items() if value is not None and value != []]
    config = recipes.load(recipe, said + given)
    return config, settings.out or Path("runs") / config.name


def student_section(name: str, given: list[Field]) -> Any:
    """A section of a student's configuration with the fields of this call, written `--name.field VALUE`."""
    from noisystudent import recipes

    said = [(f"student.{field}", value) for field, value in given]
    return getattr(recipes.resolve({"students": 1}, said, origin="command line").students[0], name)
