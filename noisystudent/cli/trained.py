"""The commands that use a trained model: predict, review, export and push."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from noisystudent.cli import screen
from noisystudent.cli.fields import (
    Device,
    Flip,
    Folders,
    Overwrite,
    Precision,
)
from noisystudent.errors import InputError, readable_size, require

# Everything that imports torch is imported inside the commands, so that `--help` and errors come at once.

TopK = Annotated[
    int | None,
    Parameter(help="Write the K most probable classes, in place of the probabilities of all."),
]
SortInto = Annotated[
    Path | None,
    Parameter(help="New folder. Each image is copied to a folder in it with the name of its class."),
]
RawImages = Annotated[
    bool,
    Parameter(negative=(), help="The file takes images of any size, and crops and resizes them itself."),
]
Card = Annotated[
    Path | None,
    Parameter(help="Model card to write, such as README.md: data, noise, verdict, robustness, limits."),
]

TableFormat = Literal["csv", "json", "parquet"] | None


def predict(
    model: Path,
    images: Annotated[tuple[str, ...], Parameter(required=True)],
    /,
    *,
    out: Path | None = None,
    overwrite: Overwrite = False,
    format: TableFormat = None,  # noqa: A002
    top_k: TopK = None,
    sort_into: SortInto = None,
    flip: Flip = False,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Predict the class of each image, and write classes and probabilities as CSV, JSON or Parquet.

    Of a run, the last student predicts, unless val shows that another model is better. Probabilities have the
    temperature that was fitted on val. Standard error names the model, and images that cannot be read.

    Parameters
    ----------
    model
        Run directory, model folder, .safetensors or .onnx file, or name of a timm model.
    images
        Image files, folders, tar or Parquet files, or patterns of them; - reads names from standard input.
    out
        File to write. Default: standard output.
    format
        Output format. Default: that of the ending of --out, or csv for standard output.
    """
    from noisystudent.inference.load import load_predictor
    from noisystudent.inference.predict import predict as predict_images
    from noisystudent.inference.sort import check_sorted, copy_sorted
    from noisystudent.inference.write import check_top_k, write_predictions

    _check_table(out, format, overwrite=overwrite, sort_into=sort_into)
    images = screen.with_input(images)
    with screen.progress(stderr=True) as progress:  # standard output may be the result
        predictor = replace(load_predictor(model, device, precision=precision, progress=progress), flip=flip)
        check_top_k(top_k, predictor.names)
        check_sorted(sort_into, predictor.names)
        predictions = predict_images(predictor, images, progress=progress)
        if sort_into is not None:
            copy_sorted(predictions, predictor.names, sort_into, progress=progress)
    write_predictions(predictions, predictor.names, out, format, top_k)
    screen.print_origin(predictor.path)
    screen.print_bad(predictions.bad)


def _check_table(out: Path | None, kind: TableFormat, *, overwrite: bool, sort_into: Path | None) -> None:
    """Check that predictions can be written to `out`, or to standard output."""
    from noisystudent.inference.write import ENDINGS, output_format
    from noisystudent.run.files import check_out

    output_format(out, kind)
    if out is None:
        return
    if sort_into is not None and out.absolute().is_relative_to(sort_into.absolute()):
        raise InputError(f"--out is {out}, which lies in --sort-into; name a file of another folder")
    check_out(out, overwrite=overwrite, suffixes=ENDINGS if kind is None else ())


def review(
    run: Path,
    /,
    *,
    out: Path,
    overwrite: Overwrite = False,
    count: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 100,
    most: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 5_000,
    device: Device = "auto",
) -> None:
    """List images that are worth a look, with the reasons, as a CSV file and as a page beside it.

    These are labels that may be wrong, images to label next, images on which models disagree, and doubtful
    ones with many like them. Edit the column label, and give the file to `run` as --given-labels.

    Parameters
    ----------
    run
        Run directory.
    out
        .csv file to write. The page has the same name, and ends in .html.
    count
        Images of each kind.
    most
        Images of the pool that the last model looks at, drawn at random. Without folds in the run, as many
        labelled images.
    """
    from noisystudent import recipes
    from noisystudent.data.sources import with_given_labels
    from noisystudent.data.sources.digits import digits
    from noisystudent.review import review as write_review
    from noisystudent.run.files import check_out
    from noisystudent.run.rundir import RunDir

    check_out(out, overwrite=overwrite, suffixes=(".csv",))
    check_out(out.with_suffix(".html"), overwrite=overwrite)
    sources = None
    if RunDir(run).config.is_file() and not (config := recipes.load(str(RunDir(run).config))).data.labeled:
        sources = with_given_labels(digits(config.seed), config.data)  # of `demo`
    with screen.progress(stderr=True) as progress:
        lines = write_review(
            run, out, count=count, most=most, sources=sources, device=device, progress=progress
        )
    for text in (*lines, f"{out} and {out.with_suffix('.html')}"):
        screen.line(text)


def export(
    run: Path,
    /,
    *,
    out: Path | None = None,
    overwrite: Overwrite = False,
    format: Literal["safetensors", "timm", "onnx", "torch-export", "openvino"] | None = None,  # noqa: A002
    raw_images: RawImages = False,
    images: Folders = (),
    card: Card = None,
) -> None:
    """Export the model that `predict` uses, check the file on real images, and print code that loads it.

    The file is loaded by its own runtime. If its logits differ from those of the model, it is deleted. Size,
    crop, temperature and classes are in the file, and in a file FILE.json beside it.

    Parameters
    ----------
    run
        Run directory, model folder, .safetensors file, or name of a timm model.
    out
        File to write. Default: RUN with the ending of the format.
    format
        Default: by the ending of --out, or safetensors. safetensors (.safetensors): weights for timm; timm: a
        folder that timm loads. onnx (.onnx), torch-export (.pt2), openvino (.xml and .bin): uint8 images in,
        logits and probabilities out.
    images
        Images for the comparison. Default: images of val.
    """
    from noisystudent.inference.card import model_card, of_run
    from noisystudent.inference.export import export as write_model
    from noisystudent.inference.formats import FORMATS
    from noisystudent.inference.load import find_model
    from noisystudent.run.files import write_text

    path = Path(os.path.realpath(run))  # Path(".") has an empty name
    ending = FORMATS[format or "safetensors"].suffix or f"-{format}"
    file = out or path.with_name(f"{path.name}{ending}")
    if card is not None:
        _check_card(card, file if format == "timm" else None, overwrite=overwrite)
    described = None if card is None else of_run(find_model(run))
    exported = write_model(
        run, file, format, raw_images=raw_images, images=images or None, overwrite=overwrite
    )
    if card is not None and described is not None:
        write_text(card, model_card(described, exported))
    screen.line(exported.line)
    screen.print_origin(find_model(run) if run.exists() else None)  # a name of timm is no path
    for text in filter(None, (exported.reason, str(exported))):
        screen.note(text)


def _check_card(card: Path, folder: Path | None, *, overwrite: bool) -> None:
    """Check that a model card can be written; `folder`: the new folder of the model, if it is one."""
    from noisystudent.run.files import check_out

    if folder is None or not card.absolute().is_relative_to(folder.absolute()):
        check_out(card, overwrite=overwrite, suffixes=(".md",), flag="--card")
        return
    place = folder / "README.md"
    require(card.absolute() == place.absolute(), f"--card is {card}, which lies in --out; name it {place}")


def push(
    run: Path,
    repository: str,
    /,
    *,
    private: Annotated[bool, Parameter(negative=(), help="The repository is private.")] = False,
    dry_run: Annotated[bool, Parameter(negative=(), help="List the files, and upload nothing.")] = False,
) -> None:
    """Upload the model that `predict` uses, with its model card, to the Hugging Face hub.

    It is the folder of `export --format timm`, checked in the same way. The repository is made if it does not
    exist. Log in with `hf auth login`, or set HF_TOKEN; HF_ENDPOINT names another hub.

    Parameters
    ----------
    run
        Run directory, or a model folder in one.
    repository
        OWNER/NAME.
    """
    from noisystudent.inference.load import find_model
    from noisystudent.inference.push import push as push_model

    pushed = push_model(run, repository, private=private, dry_run=dry_run)
    for name, size in pushed.files.items():
        screen.line(f"{name}  {readable_size(size)}")
    screen.line(pushed.line)
    screen.print_origin(find_model(run))
    screen.note(f"nothing was uploaded to {repository}" if pushed.url is None else f"uploaded: {pushed.url}")
