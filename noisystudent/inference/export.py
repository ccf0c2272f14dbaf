"""Export a model for another program, load the file there, and compare the logits on real images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from noisystudent import recipes
from noisystudent.console import Progress
from noisystudent.data.decode import DecodedImage, view
from noisystudent.data.imageset import ImageSet
from noisystudent.data.prepare import open_dataset
from noisystudent.data.sources import open_sources
from noisystudent.errors import InputError, RunError, first_line
from noisystudent.inference.content import Content
from noisystudent.inference.formats import FORMATS, Format
from noisystudent.inference.images import Images, open_images, scanned
from noisystudent.inference.load import load_predictor
from noisystudent.models.classifier import Classifier
from noisystudent.records import Predict
from noisystudent.run.files import atomic_files, check_new_folder, check_out, write_json
from noisystudent.run.rundir import RunDir, place_in_run

Pixels = NDArray[np.uint8]

_RAW_TOLERANCE = 0.02  # the view of raw images differs by 1 or 2 grey levels in some pixels, see `CleanView`


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported model, checked.

    Attributes:
        path: the file, or the folder.
        line: a line of Python that loads it.
        difference: largest difference of a logit from that of the model.
        largest: largest logit, without its sign.
        tolerance: allowed difference, as a share of the largest logit.
        images: the images on which both were computed, in words and without a path.
        reason: why they are not of val, if val of the run cannot be read; otherwise empty.
        steps: how images are prepared, in sentences.
    """

    path: Path
    line: str
    difference: float
    largest: float
    tolerance: float
    images: str
    reason: str
    steps: list[str]

    def __str__(self) -> str:
        return (
            f"logits on {self.images} differ by at most {self.difference:.2g} from those of the model;"
            f" {self.tolerance * self.largest:.2g} is allowed, and the largest logit is {self.largest:.3g}"
        )


def export(
    run: Path,
    out: Path,
    form: str | None = None,
    *,
    raw_images: bool = False,
    images: Images | None = None,
    count: int = 16,
    overwrite: bool = False,
) -> Exported:
    """Write a model to `out`, load the file with its own runtime, and compare its logits on real images.

    The file takes `images` and returns `logits` and `probs` (B, K) float32 for any B. `probs` is
    softmax(logits / T) with the temperature T that was fitted on val. A .safetensors file and the folder of
    timm hold weights under timm's names in place of a graph. How images are prepared and what the outputs
    mean is in the file, and in `out`.json beside it.

    Args:
        run: a run directory, a model folder, a .safetensors file, or the name of a timm model.
        out: the file to write, or the new folder of format timm.
        form: a name of `FORMATS`; None: by the suffix of `out`.
        raw_images: False: `images` are clean views (B, 3, S, S) uint8. True: they are (B, H, W, 3) uint8 of
            any size, and the graph makes the view itself.
        images: images for the comparison. None: images of val if the model is of a run and they can be read;
            otherwise two photographs that scikit-learn ships, and their mirror images.
        count: number of images that are compared, spread over `images`.
        overwrite: replaces existing files.

    Raises:
        InputError: no model in `run`, as in `check_out`, the format does not fit, or its extra is not
            installed.
        RunError: the written file gives other logits than the model. Nothing is left at `out`.
    """
    kind = _checked(out, form, raw_images=raw_images, overwrite=overwrite)
    predictor = load_predictor(run, device="cpu")
    if not isinstance(predictor.model, Classifier):
        raise InputError(f"{run} is exported already; give a run directory, a model folder or .safetensors")
    if raw_images and predictor.view is not None:
        raise InputError(f"--raw-images does not know how {run} was published to see images; leave it out")
    # The memory format in which timm creates networks, so that the logits can be compared bit by bit.
    model = predictor.model.to(memory_format=torch.contiguous_format)
    content = Content(predictor, model, raw_images)
    return _written(out, kind, content, _originals(predictor.path, images, count))


def _written(out: Path, kind: Format, content: Content, images: tuple[list[Pixels], str, str]) -> Exported:
    """Write the file, and compare it; see `export`."""
    originals, origin, reason = images
    with atomic_files(out) as path:
        kind.write(content, path)
        description = content.description(graph=kind.graph)
        write_json(_description_file(path, kind), description)
        difference, largest = _compared(kind.load(path, content), content, originals)
        exported = Exported(
            path=out,
            line=kind.line(out, content),
            difference=difference,
            largest=largest,
            tolerance=_RAW_TOLERANCE if content.raw_images else kind.tolerance,
            images=f"{len(originals)} {origin}",
            reason=reason,
            steps=description["steps"],
        )
        if not difference <= exported.tolerance * largest:  # NaN too
            raise RunError(f"{out} is not written: its {exported}")
    return exported


def _checked(out: Path, form: str | None, *, raw_images: bool, overwrite: bool) -> Format:
    """The format, after all checks that need no model."""
    suffixes = {kind.suffix: name for name, kind in FORMATS.items() if kind.suffix}
    if form == "timm":
        check_new_folder(out, "--out")
    else:
        check_out(out, overwrite=overwrite, suffixes=[FORMATS[form].suffix] if form else suffixes)
    name = form or suffixes[out.suffix.lower()]
    kind = FORMATS[name]
    if kind.suffix and out.suffix != kind.suffix:  # the runtimes do not know it in capital letters
        raise InputError(f"--out is {out}; the file must end in {kind.suffix}, in small letters")
    for module in kind.modules:
        if find_spec(module) is None:
            raise InputError(f"--out {out} needs {module}; pip install 'noisystudent[{kind.extra}]'")
    if raw_images and not kind.graph:
        graphs = ", ".join(name for name, kind in FORMATS.items() if kind.graph)
        raise InputError(
            f"--raw-images does not fit --format {name}, which holds weights alone; use {graphs}"
        )
    beside = [out.with_suffix(suffix) for suffix in kind.beside]
    for file in [*beside, *([_description_file(out, kind)] if kind.suffix else [])]:
        if not overwrite and os.path.lexists(file):
            raise InputError(f"--out is {out}, and {file} exists; name another file, or give --overwrite")
        if file.is_dir():
            raise InputError(f"--out is {out}, and {file} is a folder; name another file")
    return kind


def _description_file(path: Path, kind: Format) -> Path:
    # With the whole name, so that student.onnx and student.safetensors have one each.
    return path.with_name(f"{path.name}.json") if kind.suffix else path / "description.json"


def _originals(weights: Path | None, given: Images | None, count: int) -> tuple[list[Pixels], str, str]:
    """Images (H, W, 3) at full size, what they are, and why they are not of val; see `Exported`."""
    if given is not None:
        source = open_images(given, labeled=False)
        with scanned(source, None, Progress(), stored=None) as (readable, _):
            return _spread(readable, count), "given images", ""
    photographs = [image for photo in load_sample_images().images for image in (photo, photo[:, ::-1].copy())]
    place = None if weights is None else place_in_run(weights)
    if place is None:
        return photographs, "photographs", ""
    run, *_ = place
    try:
        return _spread(_val(run), count), "images of val", ""
    except (InputError, RunError) as error:  # they may have been moved since the run
        return photographs, "photographs", f"val cannot be read: {first_line(error)}"


def _val(run: RunDir) -> ImageSet:
    config = recipes.resolve(run.read_config(), origin=str(run.config)).data
    return open_dataset(run.data, config, open_sources(config)).val


def _spread(images: ImageSet, count: int) -> list[Pixels]:
    """At most `count` images, spread over the set."""
    rows = np.unique(np.linspace(0, len(images) - 1, count).astype(np.int64))
    return list(images.originals(rows))


def _compared(logits: Predict, content: Content, originals: list[Pixels]) -> tuple[float, float]:
    """Largest difference between the logits of the file and of the model, and the largest logit."""
    differences, largest = [], 0.0
    with torch.inference_mode():
        for images, views in _batches(content, originals):
            expected = content.model(views)
            differences.append(float((logits(images) - expected).abs().max()))
            largest = max(largest, float(expected.abs().max()))
    return float(np.max(differences)), largest  # unlike max(), NaN if one is NaN


def _batches(content: Content, originals: list[Pixels]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of different sizes: images as the file takes them, and their views as `predict` makes them."""
    own, side = content.predictor.view, content.model.resolution

    def seen(pixels: Pixels) -> Tensor:
        if own is not None:
            return own(Image.fromarray(pixels), side)
        return view(DecodedImage(pixels, pixels.shape[:2]), side)

    views = torch.stack([seen(pixels) for pixels in originals])
    if not content.raw_images:
        yield from ((part, part) for part in (views[:1], views))
        return
    for count, (pixels, one) in enumerate(zip(originals, views, strict=True)):
        times = 2 if count == 0 else 1
        yield torch.tensor(pixels)[None].repeat(times, 1, 1, 1), one[None].repeat(times, 1, 1, 1)
