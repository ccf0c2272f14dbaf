"""Commands that do one part alone, or use what a run has made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from noisystudent.cli import screen
from noisystudent.cli.fields import (
    NO_TESTS,
    Device,
    Fields,
    Folders,
    Overwrite,
    Precision,
    Tests,
    student_section,
)
from noisystudent.errors import InputError


def label(
    model: Path,
    /,
    *,
    unlabeled: Folders,
    out: Path,
    device: Device = "auto",
    precision: Precision = "auto",
    fields: Fields,
) -> None:
    """Let a trained model label a pool: Parquet parts of class, confidence and probabilities.

    Parameters
    ----------
    model
        A run directory, a model folder or a model.safetensors.
    unlabeled
        The pool.
    out
        Folder of the Parquet parts.
    """
    from noisystudent import inference

    config = student_section("pseudo_label", fields)
    predictor = inference.load_predictor(model, device, precision=precision)
    with screen.voice() as (voice, stop):
        labels, bad = inference.label(predictor, unlabeled, config, out, stop=stop, voice=voice)
        voice.say(f"pseudo-labels: {labels.path}")
    screen.tell_bad(bad)


def select(
    labels: Path, /, *, out: Path, seed: int = 0, overwrite: Overwrite = False, fields: Fields
) -> None:
    """Select from pseudo-labels: threshold, per-class balance, a reason for every image.

    Parameters
    ----------
    labels
        A folder that `label` wrote.
    out
        The Parquet file to write.
    seed
        Of the stochastic rounding of selection.mode official.
    """
    from noisystudent import inference
    from noisystudent.rundir import check_out
    from noisystudent.selection import select as select_images
    from noisystudent.selection import summary

    config = student_section("selection", fields)
    if config.reassign:
        raise InputError("selection.reassign is true; it is for the second student of a run, not for select")
    check_out(out, overwrite=overwrite, suffixes=(".parquet",))
    selection = select_images(inference.read_labels(labels), config, seed=seed, out=out)
    found = summary(selection)
    print(f"{found['kept']:,} of {found['images']:,} images kept, {found['total']:,} with repeats: {out}")


def evaluate(
    model: str,
    /,
    *,
    data: Folders,
    asked: Tests = NO_TESTS,
    checkpoint: Path | None = None,
    eval_size: int | None = None,
    out: Path | None = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Accuracy and robustness of a trained model, any timm model or an ONNX file on labelled images.

    Parameters
    ----------
    model
        A run directory, a model folder, a .safetensors or .onnx file, or the name of a timm model.
    data
        Labelled images; or a folder of `val` and published sets: imagenet-a, imagenet-r, imagenetv2, sketch,
        imagenet-c, imagenet-p, cifar-10-c, cifar-10-p.
    checkpoint
        Weights for the timm model, in place of those that timm publishes.
    eval_size
        Side in pixels at which the model is shown images; default: its own.
    out
        A .json or .csv file that also gets the numbers, after each test.
    """
    from noisystudent import inference
    from noisystudent.inference.rows import SUFFIXES
    from noisystudent.rundir import check_out

    if out is not None:
        check_out(out, overwrite=overwrite, suffixes=SUFFIXES)
    predictor = inference.load_predictor(
        model, device, checkpoint=checkpoint, size=eval_size, precision=precision
    )
    tests = tuple(filter(None, (test.strip() for test in asked.tests.split(","))))
    wanted = inference.Asked(**(vars(asked) | {"tests": tests}))
    with screen.voice(apart=True) as (voice, stop):
        screen.measured(inference.measure(predictor, data, wanted, stop=stop, voice=voice), out)


def predict(
    model: Path,
    images: Annotated[tuple[str, ...], Parameter(required=True)],
    /,
    *,
    out: Path | None = None,
    overwrite: Overwrite = False,
    format: Literal["csv", "json", "parquet"] | None = None,  # noqa: A002
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Class and probabilities of images; unreadable ones are named and get no row.

    Parameters
    ----------
    model
        A run directory, a model folder or a model.safetensors.
    images
        Files, folders, tar shards, Parquet.
    out
        Where to write; standard output when not given.
    format
        csv, json or parquet; default: by the ending of --out, csv on standard output.
    """
    from noisystudent import inference, predictions
    from noisystudent.rundir import check_out

    if out is not None:
        check_out(out, overwrite=overwrite, suffixes=predictions.ENDINGS if format is None else ())
    predictor = inference.load_predictor(model, device, precision=precision)
    with screen.voice(apart=True) as (voice, stop):
        found = inference.predict(predictor, images, stop=stop, voice=voice)
    predictions.write(found, predictor.names, out, format)
    screen.tell_bad(found.bad)


def report(run: Path, /, *, overwrite: Overwrite = False) -> None:
    """Rebuild report.html from the files of a run."""
    from noisystudent.report import build

    print(build(run, overwrite=overwrite))


def export(
    run: Path,
    /,
    *,
    out: Path | None = None,
    overwrite: Overwrite = False,
    format: Literal["safetensors", "timm", "onnx"] = "safetensors",  # noqa: A002
) -> None:
    """Write the last student for other programs; checks what it wrote and prints the line that loads it.

    Parameters
    ----------
    run
        A run directory or a model folder.
    out
        The file to write; its ending, .safetensors or .onnx, decides. Default: RUN with it.
    format
        safetensors, the same as timm: timm loads it by name. onnx: uint8 images to logits.
    """
    from noisystudent.export import export as write

    ending = ".onnx" if format == "onnx" else ".safetensors"
    whole = run.resolve()  # `.` has no name
    print(write(run, out or whole.with_name(f"{whole.name}{ending}"), overwrite=overwrite))


def recipes(name: str | None = None, /) -> None:
    """List the recipes, those of one run and then those for `ablate`, or print one."""
    from noisystudent import recipes as shelf

    if name is not None:
        print(shelf.text(name))
    else:
        shipped = (*shelf.names(), *shelf.matrices())
        said = ((each, shelf.text(each).splitlines()[0].lstrip("# ")) for each in shipped)
        screen.table(("recipe", "what it is"), list(said))


def fields() -> None:
    """Every field of the configuration, with its default and meaning."""
    from noisystudent import recipes as shelf

    screen.table(("field", "default", "meaning"), shelf.field_help())


COMMANDS = (label, select, evaluate, predict, report, export, recipes, fields)
