"""Open the images that a user gives, and scan them into a temporary folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet
from noisystudent.data.listing import list_items
from noisystudent.data.scan import Job, scan
from noisystudent.data.sources import ArraySource, Source, open_source
from noisystudent.data.splits import label_map
from noisystudent.data.workers import worker_count
from noisystudent.errors import InputError, Stopped
from noisystudent.inference.predictor import Predictor
from noisystudent.run.files import temporary_folder

Images = str | Path | Sequence[str | Path] | NDArray[np.uint8] | Source
"""Paths of folders, shards or files, an array (N, H, W) or (N, H, W, 3) uint8, or an open source."""

Labeled = Images | tuple[NDArray[np.uint8], Sequence[object] | NDArray[Any]]
"""Images with labels (the names of their folders, or a column of labels), or a pair `(images, labels)`."""

_STORED_BYTES = 2**30  # largest size of the decoded pixels that a scan stores, to decode images once


def open_images(given: Images, labeled: bool) -> Source:
    """Open the given images as a source.

    Args:
        given: images in any of the forms of `Images`.
        labeled: True if labels are needed.

    Raises:
        InputError: a path does not exist, there are no images, or needed labels are missing.
    """
    if isinstance(given, np.ndarray):
        if given.ndim == 3 and given.shape[2] == 3 < given.shape[1]:
            raise InputError(f"images are one array {given.shape}, a single image; give image[None]")
        return open_source([ArraySource(given)], labeled)
    paths = paths_of(given)
    if paths is not None:
        return open_source(list(paths), labeled)
    if not isinstance(given, Sequence | Path) and hasattr(given, "fingerprint"):
        return given
    members = given if isinstance(given, Sequence) else [given]
    wrong = next(one for one in members if not isinstance(one, str | Path))
    raise InputError(
        f"images are given as {type(wrong).__name__}; give paths, or an array uint8 (N, H, W) or (N, H, W, 3)"
        f"{', with labels as a pair (images, labels)' if labeled else ''}"
    )


def paths_of(given: object) -> tuple[str, ...] | None:
    """Return the paths of images; None if the images are given in another form."""
    if isinstance(given, str | Path):
        return (str(given),)
    if isinstance(given, Sequence) and all(isinstance(one, str | Path) for one in given):
        return tuple(map(str, given))
    return None


def open_labeled(given: Labeled) -> Source:
    """Open the given images with their labels; see `open_images`."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], np.ndarray):
        return open_source([ArraySource(given[0], given[1])], labeled=True)
    return open_images(given, labeled=True)


Batch = TypeVar("Batch", bound=Tensor | tuple[Tensor, NDArray[np.int64]])


def watched(batches: Iterable[Batch], task: str, total: int, progress: Progress) -> Iterator[Batch]:
    """The same batches, with a check for a signal before each batch and progress after each.

    Args:
        batches: batches of images, or of (images, labels).
        task: name of the work, for the progress.
        total: number of images; 0: no progress is shown.
        progress: shows the progress and has the signal.

    Raises:
        Stopped: a signal was received.
    """
    done = 0
    for batch in batches:
        check(progress)
        yield batch
        done += len(batch[1] if isinstance(batch, tuple) else batch)
        if total:
            progress.advance(task, done, total)


def check(progress: Progress) -> None:
    """Stop the work if a signal was received. The results so far are printed, and nothing is left on disk.

    Raises:
        Stopped: a signal was received.
    """
    if progress.signal is not None:
        raise Stopped(
            f"stopped by {progress.signal}; the results so far are above; the same command starts from the"
            " beginning"
        )


def stored_side(predictor: Predictor) -> int | None:
    """Side in pixels at which images can be stored for this model; None if they cannot.

    Stored images are squares in this package's clean view. A model with another view needs the originals.
    """
    return predictor.resolution if predictor.view is None else None


@contextmanager
def scanned(
    source: Source,
    labels: Callable[[Sequence[str]], NDArray[np.int64]] | None,
    progress: Progress,
    *,
    stored: int | None,
) -> Iterator[tuple[ImageSet, list[tuple[str, str]]]]:
    """Context manager: the readable images of a source, and (name, reason) of every other image.

    Args:
        source: source of the images.
        labels: names of the image folders -> class numbers; None: there are no labels.
        progress: shows the progress of the scan, and prints what the source leaves out.
        stored: side of the squares in which the images are stored decoded, if they are few enough; None:
            images are decoded when they are needed.

    Raises:
        InputError: no image can be read.
    """
    limits = DataConfig()
    with temporary_folder() as folder:
        (folder / "scratch").mkdir()
        listing = list_items(source, folder / "scratch" / "listing", progress)
        few = stored is not None and len(listing.index) * 3 * stored * stored <= _STORED_BYTES
        job = Job(source, limits.max_pixels, stored if few else None)
        result = scan(listing, job, folder, "images", workers=worker_count(None), progress=progress)
        for note in source.notes():
            progress.say(f"note: {note}")
        if len(result.index) == 0:
            first = ": ".join(result.bad[0])
            raise InputError(
                f"{source.name}: none of {result.listed} images can be read; the first is {first}"
            )
        images = ImageSet("images", (), result.index, source, result.storage, limits.max_pixels)
        if labels is not None:
            # `labels` is a cached property of a frozen class. Its values, the numbers of the folders, are
            # replaced by class numbers. The appended -1 keeps images without a label at -1.
            images.__dict__["labels"] = np.append(labels(result.names), -1)[images.labels]
        yield images, result.bad


def class_numbers(classes: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Class number (F,) int64 of each folder name.

    Raises:
        InputError: a name is not one of the model's classes.
    """
    classes = [unicodedata.normalize("NFC", name) for name in classes]  # the form of the names of folders
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise InputError(
            f"class {unknown[0]!r} is not one of the model's {len(classes)}"
            f" ({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})"
        )
    return label_map(list(names), tuple(classes))[:-1].astype(np.int64)
