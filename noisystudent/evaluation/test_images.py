"""Test images for a model: its clean views, and generated or published copies of them.

`run` and `evaluate` both use this module, so a test is the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet
from noisystudent.errors import InputError
from noisystudent.evaluation import copies, published
from noisystudent.evaluation.options import Options
from noisystudent.inference.images import Labeled, class_numbers, open_labeled, scanned, stored_side
from noisystudent.inference.predictor import Predictor
from noisystudent.robustness.corruptions import Frost, find_frost, nearest_side
from noisystudent.robustness.images import LabeledBatch, SuiteImages, generated, remembered
from noisystudent.robustness.results import stratified
from noisystudent.robustness.suite import TESTS

FAST_IMAGES = 1000
_LARGE = 224  # side from which a view is the centre crop of a larger image: a crop of 224 from 256 pixels
_LONGEST = 8  # longer side of a whole image, in shorter sides
_INCEPTION = 299  # side of ImageNet-C-299, whose images were cropped before they were resized


@dataclass(frozen=True, slots=True)
class OpenedImages:
    """Test images, and notes about them.

    Attributes:
        images: images of all tests in the options.
        notes: origin of the images by test.
        sets: published sets by test; tests with generated images are not in it.
        count: number of clean images; 0 if only published sets are needed.
    """

    images: SuiteImages
    notes: dict[str, str]
    sets: dict[str, published.PublishedSet]
    count: int


@contextmanager
def open_test_images(
    predictor: Predictor, data: Labeled, options: Options, progress: Progress
) -> Iterator[OpenedImages]:
    """Open the images in `data` that the tests of `options` need; generated ones are generated when read.

    Raises:
        InputError: the images do not fit the model, or the folder `write` holds something else.
    """
    pick = partial(stratified, count=FAST_IMAGES, seed=options.seed) if options.fast else None
    sets = published.find(data, predictor, pick)
    if options.write is not None and "c" in sets:
        raise InputError(
            f"--write writes generated images, but {sets['c'].root} holds corrupted images already;"
            " leave --write out"
        )
    notes = {test: published_set.note + _severities(test, options) for test, published_set in sets.items()}
    if {*options.tests} & {*TESTS} <= {*sets}:
        yield OpenedImages(published.with_published(sets), notes, sets, 0)
        return
    # Another source size is cut from the original images, not from stored squares.
    stored = None if options.source_size else stored_side(predictor)
    numbers, source = partial(class_numbers, predictor.classes), open_labeled(published.beside(data))
    frost = find_frost(options.frost)
    with scanned(source, numbers, progress, stored=stored) as (images, bad):
        for name, reason in bad:
            progress.say(f"{name}: {reason}; left out")
        if len(np.unique(images.labels)) < 2:
            raise InputError(f"{source.name} has images of one class only; a test needs at least two classes")
        rows = stratified(images.labels, FAST_IMAGES if options.fast else len(images), options.seed)
        made = generate(predictor, images, rows, options, frost)
        if options.write is not None and "c" in options.tests:
            made = _written(made, predictor, images, rows, options, progress=progress)
        notes = _notes(predictor, options, made, len(rows)) | notes
        fitted = _fitted(made, predictor) if options.source_size else made
        yield OpenedImages(published.with_published(sets, fitted), notes, sets, len(rows))


def generate(
    predictor: Predictor, images: ImageSet, rows: NDArray[np.int64], options: Options, frost: Frost | None
) -> SuiteImages:
    """The model's clean views of `rows`, and corrupted and perturbed images that are generated when read.

    From 224 pixels on, perturbations are applied to whole images, as in ImageNet-P: the surroundings of the
    model's view move into it. Stored squares have no surroundings, so these images are read from the source.
    """
    resolution, labels = predictor.resolution, images.labels[rows]
    side = options.source_size or resolution
    clean = base = remembered(partial(predictor.views, images, rows), len(rows) * 3 * resolution**2)
    if options.source_size:
        base = remembered(partial(_sources, predictor, images, rows, side), len(rows) * 3 * side * side)
    wholes = base
    if side >= _LARGE:  # kept, so that a few images are not decoded again for each perturbation
        most = len(rows) * 3 * _LONGEST * _wider(side) ** 2
        wholes = remembered(partial(_wholes, predictor, images, rows, side), most)
    jpeg = options.jpeg and not _written_as_jpeg(options, side)
    made = generated(base, wholes, labels, seed=options.seed, frost=frost, jpeg=jpeg, rows=rows)
    if base is clean:
        return made
    # With a source size only the corrupted and perturbed images start from it; the clean test does not.
    return replace(made, clean=generated(clean, clean, labels, seed=options.seed, frost=frost).clean)


def _written(
    made: SuiteImages,
    predictor: Predictor,
    images: ImageSet,
    rows: NDArray[np.int64],
    options: Options,
    *,
    progress: Progress,
) -> SuiteImages:
    """Write the corruptions to `options.write`, and return images that are read from there."""
    assert options.write is not None
    side = options.source_size or predictor.resolution
    view = f"ImageNet-C's at {side}" if options.source_size else predictor.model.name
    about: dict[str, object] = {
        "side": side,
        "view": view,
        "seed": options.seed,
        "corruptions": list(made.corruptions),
        "jpeg": options.jpeg or _written_as_jpeg(options, side),
    }
    copies.write(made, images, rows, options.write, about=about, classes=predictor.classes, progress=progress)
    written = published.PublishedSet(options.write, not copies.as_folder(side), predictor)
    return published.with_corrupted(made, written)


def _fitted(made: SuiteImages, predictor: Predictor) -> SuiteImages:
    """Corrupted and perturbed images, resized to the model's resolution."""

    def corrupted(name: str, severity: int) -> Iterator[LabeledBatch]:
        for images, labels in made.corrupted(name, severity):
            yield published.fit(images, predictor), labels

    def perturbed(name: str) -> Iterator[Tensor]:
        for frames in made.perturbed(name):
            yield published.fit(frames.flatten(0, 1), predictor).unflatten(0, frames.shape[:2])

    return replace(made, corrupted=corrupted, perturbed=perturbed)


def _notes(predictor: Predictor, options: Options, made: SuiteImages, count: int) -> dict[str, str]:
    """Origin of the generated images by test, in the words of the published protocols."""
    resolution = predictor.resolution
    side, images = options.source_size or resolution, f"{count:,} images"
    resized = "" if side == resolution else f", resized to {resolution}"
    size = f"{side} pixels, constants of {nearest_side(side)}{resized}"
    saved = ", saved as JPEG 85" if options.jpeg or _written_as_jpeg(options, side) else ", no JPEG"
    frost = "" if "frost" in made.corruptions else ", without frost"
    folder = "" if options.write is None else f", written to {options.write}"
    c = f"ImageNet-C protocol, regenerated at {size}{saved}"
    p = f"ImageNet-P protocol, regenerated at {size}, no video codec, {images}"
    return {test: images for test in TESTS} | {
        "c": f"{c}{frost}{folder}, {images}{_severities('c', options)}",
        "c-extra": f"{c}, {images}{_severities('c', options)}",
        "p": p,
        "p-extra": p,
    }


def _written_as_jpeg(options: Options, side: int) -> bool:
    """True if images of this side are written as JPEG files and so need no JPEG compression before."""
    return options.write is not None and copies.as_folder(side)


def _severities(test: str, options: Options) -> str:
    """Note of the severities with `fast`, because a mean over some severities is not a mean over all."""
    if test != "c" or not options.fast:
        return ""
    return f", severities {', '.join(map(str, options.severities))} only"


def _sources(predictor: Predictor, images: ImageSet, rows: NDArray[np.int64], side: int) -> Iterator[Tensor]:
    """Batches (B, 3, side, side) uint8, cropped and resized as the originals of the published sets."""
    yield from replace(predictor, view=_cut, side=side).views(images, rows)


def _wholes(predictor: Predictor, images: ImageSet, rows: NDArray[np.int64], side: int) -> Iterator[Tensor]:
    """Whole images (1, 3, H, W) uint8 for perturbations; the shorter side is 256 for a crop of 224.

    They are not batched, because their sizes differ.
    """
    for pixels in images.originals(rows):
        yield _shortened(Image.fromarray(pixels), _wider(side))[None].to(predictor.device)


def _cut(image: Image.Image, side: int) -> Tensor:
    """ImageNet-C's view (3, side, side) of an image.

    At 299 it is the middle 0.875 of both sides, resized. At 224 it is a centre crop of the image resized to
    256. Below 224 it is the largest centred square, resized.
    """
    if side == _INCEPTION:
        width, height = (int(length * 0.875) for length in image.size)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        middle = image.crop((left, top, left + width, top + height))
        return _tensor(middle.resize((side, side), Image.Resampling.BILINEAR))
    pixels = _shortened(image, _wider(side) if side >= _LARGE else side)
    top, left = (round((length - side) / 2) for length in pixels.shape[1:])
    return pixels[:, top : top + side, left : left + side].contiguous()


def _shortened(image: Image.Image, side: int) -> Tensor:
    """(3, H, W): the whole image, resized so that its shorter side is `side`, as torchvision's `Resize`.

    The ends of an image longer than `_LONGEST` are cut off: a file of a few bytes could fill the memory.
    """
    width, height = image.size
    size = (side, side * height // width) if width < height else (side * width // height, side)
    # even, so that the centre crop begins at the pixel at which it would have begun
    cut = [max(0, length - _LONGEST * side) // 4 * 2 for length in size]
    left, top = (ends * whole / length for ends, whole, length in zip(cut, image.size, size, strict=True))
    kept = (size[0] - 2 * cut[0], size[1] - 2 * cut[1])
    box = (left, top, width - left, height - top)
    return _tensor(image.resize(kept, Image.Resampling.BILINEAR, box))


def _wider(side: int) -> int:
    """Shorter side of the image from which a crop of `side` is cut: 256 for 224."""
    return round(side * 256 / _LARGE)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
