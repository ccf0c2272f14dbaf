"""What a model is shown of labelled images: its clean views, and generated or published copies of them."""

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

from noisystudent.data.imageset import ImageSet
from noisystudent.data.loader import clean_batches
from noisystudent.data.workers import worker_count
from noisystudent.errors import InputError
from noisystudent.evaluate.answers import stratified
from noisystudent.evaluate.corruptions import Frost, column, find_frost
from noisystudent.evaluate.pictures import Labeled as Shown
from noisystudent.evaluate.pictures import Pictures, generated, remembered
from noisystudent.evaluate.stress import TESTS
from noisystudent.inference import copies, published
from noisystudent.inference.asked import FAST_IMAGES, Asked
from noisystudent.inference.images import Labeled, class_numbers, open_labeled, scanned, stored_side, views
from noisystudent.inference.loading import Predictor
from noisystudent.runtime import StopFlag, Voice

_BATCH = 256
_LARGE = 224  # from there on a view is the middle of a wider picture, 256 for 224
_INCEPTION = 299  # its published set was cut and resized in another way


@dataclass(frozen=True, slots=True)
class Scene:
    """What is shown, and what to say of it.

    Attributes:
        pictures: of all tests asked for.
        notes: where the pictures of each test come from.
        found: the published sets among them, by test.
        images: how many clean ones.
    """

    pictures: Pictures
    notes: dict[str, str]
    found: dict[str, published.Found]
    images: int


@contextmanager
def scene(predictor: Predictor, data: Labeled, asked: Asked, stop: StopFlag, voice: Voice) -> Iterator[Scene]:
    """Open what `asked` needs of `data`.

    Raises:
        InputError: images the model cannot be measured on, or a folder for copies that holds something else.
    """
    pick = partial(stratified, count=FAST_IMAGES, seed=asked.seed) if asked.fast else None
    found = published.find(data, predictor, pick)
    if asked.write is not None and "c" in found:
        raise InputError(f"--write is given, but {found['c'].root} holds corrupted images already")
    notes = {test: one.note + _severities(test, asked) for test, one in found.items()}
    if {*asked.tests} & {*TESTS} <= {*found}:
        yield Scene(published.pictures(found), notes, found, 0)
        return
    stored = None if "p" in asked.tests or asked.source_size else stored_side(predictor)
    numbers, source = partial(class_numbers, predictor.classes), open_labeled(published.beside(data))
    frost = find_frost(asked.frost)
    with scanned(source, numbers, stop, voice, stored=stored) as (images, bad):
        for name, reason in bad:
            voice.say(f"{name}: {reason}; left out")
        if len(np.unique(images.labels)) < 2:
            raise InputError(f"{source.name} has images of one class only; a test needs two classes or more")
        rows = stratified(images.labels, FAST_IMAGES if asked.fast else len(images), asked.seed)
        made = _generated(predictor, images, rows, asked, frost)
        if asked.write is not None and "c" in asked.tests:
            made = _written(made, predictor, images, rows, asked, stop, voice)
        notes = _notes(predictor, asked, made, len(rows)) | notes
        shown = _fitted(made, predictor) if asked.source_size else made
        yield Scene(published.pictures(found, shown), notes, found, len(rows))


def _generated(
    predictor: Predictor, images: ImageSet, rows: NDArray[np.int64], asked: Asked, frost: Frost | None
) -> Pictures:
    """The model's clean views, and copies made on the way."""
    own, labels = predictor.model.resolution, images.labels[rows]
    side = asked.source_size or own
    clean = base = remembered(partial(views, predictor, images, rows), len(rows) * 3 * own * own)
    if asked.source_size:
        base = remembered(partial(_sources, predictor, images, rows, side), len(rows) * 3 * side * side)
    wide = side >= _LARGE and not images.resident
    wholes = partial(_wholes, predictor, images, rows, side) if wide else base
    jpeg = asked.jpeg and not _as_folder(asked, side)
    made = generated(base, wholes, labels, seed=asked.seed, frost=frost, jpeg=jpeg, rows=rows)
    if base is clean:
        return made
    return replace(made, clean=generated(clean, clean, labels, seed=asked.seed, frost=frost).clean)


def _written(
    made: Pictures,
    predictor: Predictor,
    images: ImageSet,
    rows: NDArray[np.int64],
    asked: Asked,
    stop: StopFlag,
    voice: Voice,
) -> Pictures:
    """Corruptions written to disk, and shown as they are there."""
    assert asked.write is not None
    side = asked.source_size or predictor.model.resolution
    view = f"ImageNet-C's at {side}" if asked.source_size else predictor.model.name
    about: dict[str, object] = {"side": side, "view": view, "seed": asked.seed}
    about |= {"corruptions": list(made.corruptions), "jpeg": asked.jpeg or _as_folder(asked, side)}
    copies.write(made, images, rows, asked.write, about, predictor.classes, stop, voice)
    found = published.Found(asked.write, not copies.as_folder(side), predictor)
    return replace(made, corrupted=found.corrupted)


def _fitted(made: Pictures, predictor: Predictor) -> Pictures:
    """Copies at the model's resolution, whatever they were made at."""

    def corrupted(name: str, severity: int) -> Iterator[Shown]:
        for images, labels in made.corrupted(name, severity):
            yield published.fit(images, predictor), labels

    def perturbed(name: str) -> Iterator[Tensor]:
        for frames in made.perturbed(name):
            yield published.fit(frames.flatten(0, 1), predictor).unflatten(0, frames.shape[:2])

    return replace(made, corrupted=corrupted, perturbed=perturbed)


def _as_folder(asked: Asked, side: int) -> bool:
    """Whether copies are written as JPEG, so that nothing else has to save them as such."""
    return asked.write is not None and copies.as_folder(side)


def _notes(predictor: Predictor, asked: Asked, made: Pictures, count: int) -> dict[str, str]:
    own = predictor.model.resolution
    side, images = asked.source_size or own, f"{count:,} images"
    size = f"{side} pixels, constants of {column(side)}" + ("" if side == own else f", shown at {own}")
    ends = ", saved as JPEG 85" if asked.jpeg or _as_folder(asked, side) else ", no JPEG"
    ends += "" if "frost" in made.corruptions else ", without frost"
    ends += "" if asked.write is None else f", written to {asked.write}"
    return {test: images for test in TESTS} | {
        "c": f"ImageNet-C protocol, regenerated at {size}{ends}, {images}{_severities('c', asked)}",
        "p": f"ImageNet-P protocol, regenerated at {size}, no video codec, {images}",
    }


def _severities(test: str, asked: Asked) -> str:
    """What `fast` leaves out of a figure stands beside it."""
    few = test == "c" and asked.fast
    return f", severities {', '.join(map(str, asked.severities))} only" if few else ""


def _sources(predictor: Predictor, images: ImageSet, rows: NDArray[np.int64], side: int) -> Iterator[Tensor]:
    """(B, 3, side, side) uint8 as the published sets were cut from their originals."""
    yield from clean_batches(
        replace(images, shown=_cut),
        rows,
        resolution=side,
        batch_size=_BATCH,
        device=predictor.device,
        workers=worker_count(None),
    )


def _wholes(predictor: Predictor, images: ImageSet, rows: NDArray[np.int64], side: int) -> Iterator[Tensor]:
    """(1, 3, H, W) uint8 each, the shorter side 256 for a crop of 224: ImageNet-P moves whole pictures."""
    for pixels in replace(images, shown=_shortened).views(rows, _wider(side)):
        yield pixels[None].to(predictor.device)


def _cut(image: Image.Image, side: int) -> Tensor:
    """ImageNet-C's view (3, side, side): at 299 the middle 0.875 of both sides, below 224 the square."""
    if side == _INCEPTION:
        width, height = (int(length * 0.875) for length in image.size)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        middle = image.crop((left, top, left + width, top + height))
        return _tensor(middle.resize((side, side), Image.Resampling.BILINEAR))
    pixels = _shortened(image, _wider(side) if side >= _LARGE else side)
    top, left = (round((length - side) / 2) for length in pixels.shape[1:])
    return pixels[:, top : top + side, left : left + side].contiguous()


def _shortened(image: Image.Image, side: int) -> Tensor:
    """(3, H, W), the whole image, its shorter side resized as torchvision's `Resize` does it."""
    width, height = image.size
    size = (side, side * height // width) if width < height else (side * width // height, side)
    return _tensor(image.resize(size, Image.Resampling.BILINEAR))


def _wider(side: int) -> int:
    return round(side * 256 / _LARGE)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
