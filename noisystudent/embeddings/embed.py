"""Compute features in parts; a killed run loses at most the part being computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.console import Progress
from noisystudent.distributed import group
from noisystudent.embeddings.parts import Features, Layout, Rows, layout_in, new_index, read_index
from noisystudent.errors import RunError
from noisystudent.run.checksums import checksum
from noisystudent.run.files import atomic, new_array, remove
from noisystudent.run.part_index import Files, PartIndex, is_damaged
from noisystudent.run.rundir import PartsDir
from noisystudent.runtime import on_host

_PART_ROWS = 65_536
_POLL = 0.05  # seconds between two looks for the part of another process
_PART_BYTES = 2**28  # wide features of many views have fewer images in a part


def part_rows(views: int, width: int) -> int:
    """Return the number of images of a part with this many views and features of an image."""
    return max(1, min(_PART_ROWS, _PART_BYTES // (2 * views * width)))


def embed_images(
    features: Callable[[Iterator[Rows]], Iterator[Tensor]],
    ids: Callable[[Rows], list[str]],
    content_hash: NDArray[np.uint8],
    copies: tuple[Rows, Rows],
    *,
    layout: Layout,
    batch_size: int,
    out: Path,
    task: str,
    progress: Progress,
) -> Features:
    """Store the features of every image in float16. A second call after a stop continues.

    Complete parts of the same images and settings are kept. All processes of a run share the others out.

    Args:
        features: rows of each batch -> (V, b, F) of each batch; called once, for the batches of all parts.
        ids: rows -> names of the images.
        content_hash: (N, 16) uint8.
        copies: rows whose content an earlier row has, ascending, and the first such row of each.
        layout: numbers of images, views and features, and what else the features depend on.
        batch_size: images of a batch.
        out: folder of the parts.
        task, progress: name of this work and its display. A signal stops the work between two batches.

    Raises:
        RunError: a feature is not finite in float16, images are missing, or the disk is full.
        Stopped: a signal came. All finished parts are on disk.
    """
    folder, parts = PartsDir(out), layout.parts()
    known = group().lead(partial(_resume, folder, layout, content_hash, task, progress))
    missing, index = group().own(_missing(folder, known)), known.own()
    batches = {number: _batches(parts[number], copies[0], batch_size) for number in missing}
    requests = [rows for part in batches.values() for rows in part]
    stream = features(iter(requests)) if requests else iter(())
    computed = on_host((batch.half() for batch in stream), lag=1)
    for number, rows in enumerate(parts):
        progress.check()
        if number in batches:
            with _new_part(layout, rows, folder.part(number), index, content_hash) as array:
                for batch in batches[number]:
                    _fill(array, next(computed, None), batch, rows.start, ids)
                    progress.check()
                    progress.advance(task, int(batch[-1]) + 1, layout.rows)
                _copy(array, folder, layout, rows, copies, progress=progress)
            index.write()
        progress.advance(task, rows.stop, layout.rows)
    index.join()
    return Features(folder)


def _missing(folder: PartsDir, index: PartIndex) -> list[int]:
    """Numbers of the parts that are not in the index."""
    numbers = range(len(layout_in(index).parts()))
    return [number for number in numbers if folder.part(number).name not in index.files]


@contextmanager
def _new_part(
    layout: Layout, rows: range, path: Path, index: PartIndex, content_hash: NDArray[np.uint8]
) -> Iterator[NDArray[np.float16]]:
    """Yield an array (V, n, F) on disk that becomes a part, with its checksum and its images in `index`."""
    with atomic(path) as partial:
        shape = (layout.views, len(rows), layout.width)
        array = new_array(partial, np.float16, shape)
        yield array
        array.flush()
        index.files[path.name] = {**checksum(partial), "images": _digest(content_hash, rows)}


def _batches(part: range, copies: Rows, size: int) -> list[Rows]:
    """Rows of a part whose content no earlier row has, in batches."""
    low, high = np.searchsorted(copies, [part.start, part.stop])
    rows = np.setdiff1d(np.arange(part.start, part.stop), copies[low:high], assume_unique=True)
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def _digest(content_hash: NDArray[np.uint8], rows: range) -> str:
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(content_hash[rows.start : rows.stop]).data)


def _fill(
    array: NDArray[np.float16],
    batch: NDArray[np.float16] | None,
    rows: Rows,
    first: int,
    ids: Callable[[Rows], list[str]],
) -> None:
    """Write the features (V, b, F) of some rows into a part (V, n, F) that begins at the row `first`."""
    if batch is None or batch.shape != (len(array), len(rows), array.shape[2]):
        given = "no batch" if batch is None else f"features {batch.shape}"
        raise RunError(f"{given} for {len(rows)} images from row {rows[0]} on; the images have changed")
    finite = np.isfinite(batch).all(axis=(0, 2))
    if not finite.all():
        name = ids(rows[~finite][:1])[0]
        raise RunError(
            f"the features of image {name!r} are not finite in float16; use the weights of another network"
        )
    array[:, rows - first] = batch


def _copy(
    array: NDArray[np.float16],
    folder: PartsDir,
    layout: Layout,
    rows: range,
    copies: tuple[Rows, Rows],
    *,
    progress: Progress,
) -> None:
    """Fill the rows of a part whose content an earlier row has, in this part or in one before it."""
    low, high = np.searchsorted(copies[0], [rows.start, rows.stop])
    local, firsts = copies[0][low:high] - rows.start, copies[1][low:high]
    here = firsts >= rows.start
    array[:, local[here]] = array[:, firsts[here] - rows.start]
    number, before = np.divmod(firsts[~here], layout.part_rows)
    for earlier in np.unique(number):
        while not folder.part(int(earlier)).exists():  # another process makes it
            progress.check()
            time.sleep(_POLL)
        stored: NDArray[np.float16] = np.load(folder.part(int(earlier)), mmap_mode="r")
        array[:, local[~here][number == earlier]] = stored[:, before[number == earlier]]


def is_of(folder: PartsDir, content_hash: NDArray[np.uint8]) -> bool:
    """Return True if `folder` has all features of the images with these content hashes (N, 16), in order."""
    index = read_index(folder)
    if index is None or layout_in(index).rows != len(content_hash):
        return False
    names = {folder.part(number).name: rows for number, rows in enumerate(layout_in(index).parts())}
    return all(index.files.get(n, {}).get("images") == _digest(content_hash, r) for n, r in names.items())


def is_of_other_images(folder: PartsDir, content_hash: NDArray[np.uint8]) -> bool:
    """Return True if a part has the features of other images than its rows of `content_hash`, (N, 16).

    A larger set that begins with these images is no other one.
    """
    index = read_index(folder)
    if index is None:
        return False
    parts = {folder.part(number).name: rows for number, rows in enumerate(layout_in(index).parts())}
    images = {name: about.get("images") for name, about in index.files.items()}
    return any(images[name] != _digest(content_hash, parts[name]) for name in images if name in parts)


def _resume(
    folder: PartsDir, layout: Layout, content_hash: NDArray[np.uint8], task: str, progress: Progress
) -> PartIndex:
    """Write parts.json with the parts that need not be made again, and return it.

    Damaged parts are moved away and named. Parts of other images or settings are removed.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    before, kept = read_index(folder), Files()
    # A larger set keeps the parts that it begins with.
    known = before.files if before is not None and layout_in(before).is_like(layout) else {}
    again = "its features are computed again"
    for number, rows in enumerate(layout.parts()):
        name = folder.part(number).name
        if known.get(name, {}).get("images") != _digest(content_hash, rows):
            continue
        expected = {key: value for key, value in known[name].items() if key != "images"}
        if not is_damaged(folder, name, expected, task=task, again=again, progress=progress):
            kept[name] = known[name]
    for path in folder.parts():
        if path.name not in kept:
            remove(path)
    index = new_index(folder, layout, kept)
    index.join()
    return index
