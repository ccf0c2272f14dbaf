"""The commands for single parts of a run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from noisystudent.cli import screen
from noisystudent.cli.aliases import short_name
from noisystudent.cli.fields import (
    NO_TESTS,
    Device,
    Fields,
    Flip,
    Folders,
    Overwrite,
    Precision,
    Tests,
    student_section,
)
from noisystudent.cli.trained import export, predict, push, review
from noisystudent.cli.worker import NO_WORKER, Worker, label_as_worker
from noisystudent.errors import InputError

# Everything that imports torch is imported inside the commands, so that `--help` and errors come at once.


def label(
    model: Path,
    /,
    *,
    unlabeled: Folders = (),
    out: Path | None = None,
    helper: Worker = NO_WORKER,
    device: Device = "auto",
    precision: Precision = "auto",
    fields: Fields,
) -> None:
    """Label images with a trained model, and write class, confidence and probabilities to Parquet files.

    With --worker it helps a run to label its pool. Start it any number of times, on any machines that share
    the run directory, while `run` is labelling or after it was stopped: each makes parts that no other makes,
    and takes over those of processes that died. It ends when every part is labelled, and with exit code 75 if
    the run has nothing to label yet.

    Parameters
    ----------
    model
        Run directory, model folder, .safetensors or .onnx file, or name of a timm model.
    unlabeled
        Images to label: any folders, tar shards, Parquet or .npz files.
    out
        Output folder. A second call continues an interrupted one; one with other images is refused.
    """
    from noisystudent.inference.load import load_predictor
    from noisystudent.inference.predict import label_images

    if helper.worker or helper.engine is not None:
        given = {"--unlabeled": unlabeled, "--out": out, "--precision": precision != "auto"}
        label_as_worker(model, helper, device, [*(flag for flag in given if given[flag]), *fields])
        return
    if out is None or not unlabeled:
        missing = "--out" if out is None else "--unlabeled"
        raise InputError(f"{missing} is missing; give it, or --worker to help the run {model}")
    config = student_section("pseudo_label", fields)
    with screen.progress() as progress:
        predictor = load_predictor(model, device, precision=precision, progress=progress)
        labels, bad = label_images(predictor, unlabeled, out, config=config, progress=progress)
        progress.say(f"pseudo-labels: {labels.path}")
    screen.print_origin(predictor.path)
    screen.print_bad(bad)


def embed(
    model: str,
    /,
    *,
    images: Folders,
    out: Path,
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    fields: Fields,
) -> None:
    """Compute the features of images with the backbone of a model, and write them to .npy files.

    Each file is an array (views, images, features), float16. The first view is the clean one, then come the
    mirrored one (--augment.flip) and those with noise (--augment.views). images.parquet names the images.

    Parameters
    ----------
    model
        Run directory, model folder, model.safetensors, or name of a timm model.
    images
        Images: any folders, tar shards, Parquet or .npz files.
    out
        Output folder. A second call continues an interrupted one; one with other images is refused.
    seed
        Seed of the views with noise.
    """
    from noisystudent.inference.embed import embed as embed_images
    from noisystudent.inference.load import load_predictor

    augment = student_section("augment", fields)
    with screen.progress() as progress:
        predictor = load_predictor(model, device, precision=precision, progress=progress)
        made, bad = embed_images(predictor, images, out, augment=augment, seed=seed, progress=progress)
        progress.say(f"features of {len(made):,} images, {made.layout.views} views of each: {out}")
    screen.print_origin(predictor.path)
    screen.print_bad(bad)


def select(
    labels: Path, /, *, out: Path, seed: int = 0, overwrite: Overwrite = False, fields: Fields
) -> None:
    """Select pseudo-labels by confidence, balance the classes, and write each decision to a Parquet file.

    Parameters
    ----------
    labels
        Folder written by `label`, or the folder of pseudo-labels of a run.
    out
        Parquet file to write.
    seed
        Seed of the random rounding in selection.mode official.
    """
    from noisystudent.inference.predict import label_classes, read_labels
    from noisystudent.run.files import check_out
    from noisystudent.selection import junk_note, lost_classes, summary, without_effect
    from noisystudent.selection import select as select_images

    config = student_section("selection", fields)
    if config.reassign:
        raise InputError(
            "selection.reassign is true; it applies only to `run`, so it must be false for `select`"
        )
    check_out(out, overwrite=overwrite, suffixes=(".parquet",))
    selection = select_images(read_labels(labels), config, seed=seed, out=out)
    counts = summary(selection)
    screen.line(
        f"{counts['kept']:,} of {counts['images']:,} images kept, {counts['total']:,} with repeats: {out}"
    )
    junk = junk_note(counts, config)
    if junk is not None:
        screen.line(junk)
    lines = lost_classes(counts, label_classes(labels))
    useless = without_effect(config, selection.num_classes)
    for line in [*lines, *([useless] if useless else [])]:
        print(f"noisystudent: warning: {line}", file=sys.stderr)


def evaluate(
    model: str,
    /,
    *,
    data: Folders,
    tests: Tests = NO_TESTS,
    checkpoint: Path | None = None,
    eval_size: int | None = None,
    out: Path | None = None,
    overwrite: Overwrite = False,
    flip: Flip = False,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Measure accuracy and robustness of a model on labelled images, and print a table of the results.

    Parameters
    ----------
    model
        Run directory, model folder, .safetensors or .onnx file, or name of a timm model.
    data
        Labelled images, or a folder that contains `val` and published sets: imagenet-a, imagenet-r,
        imagenetv2, sketch, imagenet-c, imagenet-p, cifar-10-c, cifar-100-c, cifar-10-p.
    checkpoint
        Weights of a timm model. Default: the weights published by timm.
    eval_size
        Side in pixels of the input of the model. Default: that of the model.
    out
        .json or .csv file for the results, which is also written after each test.
    """
    from noisystudent.evaluation.measure import measure
    from noisystudent.evaluation.rows import SUFFIXES
    from noisystudent.inference.load import load_predictor
    from noisystudent.run.files import check_out

    # Checked before the model is loaded, so that a wrong path does not cost the time of the evaluation.
    if out is not None:
        check_out(out, overwrite=overwrite, suffixes=SUFFIXES)
    with screen.progress(stderr=True) as progress:
        predictor = load_predictor(
            model, device, checkpoint=checkpoint, size=eval_size, precision=precision, progress=progress
        )
        predictor = replace(predictor, flip=flip)
        screen.print_rows(measure(predictor, data, tests, progress=progress), out)
    screen.print_origin(predictor.path)


def report(run: Path, /, *, overwrite: Overwrite = False) -> None:
    """Write report.html of a run again, from the files of the run.

    Parameters
    ----------
    run
        Run directory.
    """
    from noisystudent.report import build

    screen.line(str(build(run, overwrite=overwrite)))


def recipes(name: str | None = None, /) -> None:
    """List all recipes, first those for `run` and then those for `ablate`, or print the YAML of one.

    Parameters
    ----------
    name
        Recipe to print. Default: list all.
    """
    from noisystudent import recipes as shelf

    if name is not None:
        for line in shelf.text(name).rstrip("\n").split("\n"):
            screen.line(line)
    else:
        shipped = (*shelf.names(), *shelf.matrices())
        # The first line of each file is a comment that describes the recipe.
        rows = [(recipe, shelf.text(recipe).splitlines()[0].lstrip("# ")) for recipe in shipped]
        screen.table(("recipe", "description"), rows)


def fields() -> None:
    """List all configuration fields with their defaults and meanings.

    A student inherits the fields of teacher: what is set there is the default of student.*.
    """
    from noisystudent import recipes as shelf

    rows = [
        (name, default, f"{meaning} Short: {short}." if (short := short_name(name)) else meaning)
        for name, default, meaning in shelf.field_help()
    ]
    screen.table(("field", "default", "meaning"), rows)


COMMANDS = (label, embed, select, evaluate, predict, review, report, export, push, recipes, fields)
