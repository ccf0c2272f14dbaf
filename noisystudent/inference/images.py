"""Images named on a call: opened, scanned into a temporary folder, and shown as the model wants them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.config import DataConfig
from noisystudent.data.assign import label_map
from noisystudent.data.imageset import ImageSet
from noisystudent.data.loader import requested_batches
from noisystudent.data.scan import Job, list_items, scan
from noisystudent.data.sources import ArraySource, Source, open_source
from noisystudent.data.workers import worker_count
from noisystudent.errors import InputError, Stopped
from noisystudent.evaluate.stress import at_once
from noisystudent.inference.loading import Predictor
from noisystudent.runtime import Silent, StopFlag, Voice

Images = str | Path | Sequence[str | Path] | NDArray[np.uint8] | Source
"""Folders, shards or files by name, an array (N, H, W) or (N, H, W, 3) uint8, or an open source."""

Labeled = Images | tuple[NDArray[np.uint8], Sequence[object] | NDArray[Any]]
"""Images that bring their labels, or `(images, labels)`."""

_BATCH = 256
_STORED_BYTES = 2**30  # decoded pixels kept beside a scan, so that images are decoded once


def open_images(given: Images, labeled: bool) -> Source:
    """A source of whatever names or holds the images.

    Raises:
        InputError: nothing is there, no images, or images without the labels that are needed.
    """
    if isinstance(given, np.ndarray):
        return open_source([ArraySource(given)], labeled)
    if not isinstance(given, Sequence | Path):
        return given
    return open_source([given] if isinstance(given, str | Path) else list(given), labeled)


def open_labeled(given: Labeled) -> Source:
    """As `open_images`, for images with labels."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], np.ndarray):
        return open_source([ArraySource(given[0], given[1])], labeled=True)
    return open_images(given, labeled=True)


def views(predictor: Predictor, images: ImageSet, rows: NDArray[np.int64]) -> Iterator[Tensor]:
    """Clean views (B, 3, S, S) uint8 of `rows`, in this order, as the model sees them, on its device."""
    size = at_once(predictor.model.resolution, _BATCH)
    requests = (rows[at : at + size] for at in range(0, len(rows), size))
    yield from requested_views(predictor, images, requests)


def requested_views(
    predictor: Predictor, images: ImageSet, requests: Iterator[NDArray[np.int64]]
) -> Iterator[Tensor]:
    """The same for the rows of one batch after the other."""
    yield from requested_batches(
        replace(images, shown=predictor.view),
        requests,
        resolution=predictor.model.resolution,
        device=predictor.device,
        workers=worker_count(None),
    )


Batch = TypeVar("Batch", Tensor, tuple[Tensor, NDArray[np.int64]])


def watched(batches: Iterable[Batch], task: str, total: int, stop: StopFlag, voice: Voice) -> Iterator[Batch]:
    """The same batches; `stop` is asked before each, `voice` told of the images done unless `total` is 0."""
    done = 0
    for batch in batches:
        halt(stop)
        yield batch
        done += len(batch[1] if isinstance(batch, tuple) else batch)
        if total:
            voice.progress(task, done, total)


def halt(stop: StopFlag) -> None:
    """Stop here if a signal asked for it; what was found has been told, and nothing is left on disk.

    Raises:
        Stopped: a signal came.
    """
    if stop.signal is not None:
        raise Stopped(f"stopped by {stop.signal}; what was found is above, the same command begins anew")


def stored_side(predictor: Predictor) -> int | None:
    """Side of stored squares that serve the model: its own, where it takes this package's clean views."""
    return predictor.model.resolution if predictor.view is None else None


@contextmanager
def scanned(
    source: Source,
    labels: Callable[[Sequence[str]], NDArray[np.int64]] | None,
    stop: StopFlag | None,
    voice: Voice | None,
    *,
    stored: int | None,
) -> Iterator[tuple[ImageSet, list[tuple[str, str]]]]:
    """The readable images of a source, and (name, reason) of those that are not.

    Args:
        source: of images.
        labels: names of the folders they lie in -> their class numbers; None: there are no labels.
        stop: asked while scanning.
        voice: told how far the scan is.
        stored: decode once into squares of this side where they are few; None: decode when asked.
    """
    stop, voice = stop or StopFlag(), voice or Silent()
    limits = DataConfig()
    with tempfile.TemporaryDirectory(prefix="noisystudent-") as name:
        folder = Path(name)
        (folder / "scratch").mkdir()
        listing = list_items(source, folder / "scratch" / "listing", stop)
        few = stored is not None and len(listing.index) * 3 * stored * stored <= _STORED_BYTES
        job = Job(source, limits.max_pixels, stored if few else None)
        found = scan(listing, job, folder, "images", worker_count(None), stop, voice.progress)
        images = ImageSet("images", (), found.index, source, found.storage, limits.max_pixels)
        if labels is not None:
            images.__dict__["labels"] = np.append(labels(found.names), -1)[images.labels]
        yield images, found.bad


def class_numbers(classes: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Class number of each folder name.

    Raises:
        InputError: a name that the model does not know.
    """
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise InputError(
            f"class {unknown[0]!r} is not one of the model's {len(classes)}"
            f" ({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})"
        )
    return label_map(list(names), tuple(classes))[:-1].astype(np.int64)
