"""One look at every image of a set: listed, hashed, decoded, measured, and stored where it stays resident."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from noisystudent.data.decode import DecodeError, center_view
from noisystudent.data.imageset import content_hash, pixels_of
from noisystudent.data.index import BATCH_ROWS, HASH_BYTES, SCHEMA, Index, record_batch, writer
from noisystudent.data.sources import ArraySource, Item, Source
from noisystudent.data.workers import context, quiet_worker
from noisystudent.runtime import StopFlag

Progress = Callable[[str, int, int], None]
"""Called with (what is done, images done, images in all; 0 while unknown)."""

_CHUNK = 64
_FEW = 1024
_LISTING = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.int32()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Listing:
    """A set before decoding: items on disk, label names as they came, files with unusable names."""

    index: Index
    names: list[str]
    bad: list[tuple[str, str]]


@dataclass(frozen=True)
class Scan:
    """A set after decoding: good rows on disk (labels number `names`), stored pixels, the bad and why."""

    source: Source
    index: Index
    names: list[str]
    storage: Path | None
    bad: list[tuple[str, str]]
    listed: int


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to look at images; `resolution` None keeps no pixels."""

    source: Source
    max_pixels: int
    resolution: int | None


@dataclass(frozen=True)
class Looked:
    """What was found: hashes (n, 16), sizes (n, 2), why an image is bad, pixels (n, 3, S, S) if kept."""

    hashes: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    reasons: list[str | None]
    pixels: NDArray[np.uint8] | None


Place = tuple[str, int, int, int]
"""(id, shard, offset, size) of one image."""


def list_items(source: Source, path: Path, stop: StopFlag) -> Listing:
    """Write every item of a source to an Arrow file; memory does not grow with the images.

    Raises:
        Stopped: a signal asked for it.
    """
    codes: dict[str, int] = {}
    bad: list[tuple[str, str]] = []
    items = source.items()
    with writer(path, _LISTING) as append:
        while batch := list(islice(items, BATCH_ROWS)):
            stop.check()
            good = [item for item in batch if _writable(item, bad)]
            labels = [-1 if i.label is None else codes.setdefault(i.label, len(codes)) for i in good]
            columns = [
                [i.id for i in good],
                labels,
                *([getattr(i, f) for i in good] for f in Item._fields[2:]),
            ]
            append(pa.RecordBatch.from_arrays(list(map(pa.array, columns)), _LISTING.names).cast(_LISTING))
    return Listing(Index(path), list(codes), bad)


def scan(
    listing: Listing,
    job: Job,
    folder: Path,
    name: str,
    workers: int,
    stop: StopFlag,
    progress: Progress | None,
) -> Scan:
    """Look at every listed image once, in order, with `workers` processes (0: in this one).

    Args:
        listing: what to look at.
        job: from where and how.
        folder: gets `scratch/<name>.arrow`, and `<name>.npy` (N, 3, S, S) uint8 where pixels are kept.
        name: of the set.
        workers: decoding processes.
        stop: asked once a chunk.
        progress: told once a chunk.

    Raises:
        Stopped: a signal asked for it.
    """
    bad = list(listing.bad)
    total, done, stored = len(listing.index), 0, 0
    storage = None if job.resolution is None else folder / f"{name}.npy"
    path = folder / "scratch" / f"{name}.arrow"
    pixels = storage.open("wb") if storage else None
    try:
        with writer(path, SCHEMA) as append:
            _write_header(pixels, 0, job.resolution)
            for places, labels, looked in _results(listing.index, job, workers):
                stop.check()
                good = np.array([reason is None for reason in looked.reasons])
                bad.extend((p[0], r) for p, r in zip(places, looked.reasons, strict=True) if r is not None)
                append(_good_rows(places, labels, looked, good, stored if storage else None))
                if pixels is not None and looked.pixels is not None:
                    pixels.write(np.ascontiguousarray(looked.pixels[good]).data)
                stored += int(good.sum())
                done += len(places)
                if progress:
                    progress(f"scanning {name}", done, total)
        _write_header(pixels, stored, job.resolution)
    finally:
        if pixels is not None:
            pixels.close()
    return Scan(job.source, Index(path), listing.names, storage, bad, total + len(listing.bad))


def look(job: Job, places: list[Place]) -> Looked:
    """Read, hash, decode and measure some images; what fails gets a reason, and its row stays empty."""
    count, side = len(places), job.resolution
    hashes = np.zeros((count, HASH_BYTES), np.uint8)
    sizes = np.zeros((count, 2), np.int32)
    pixels = None if side is None else np.zeros((count, 3, side, side), np.uint8)
    reasons: list[str | None] = [None] * count
    for row, (name, shard, offset, size) in enumerate(places):
        try:
            data = job.source.read(shard, offset, size, name)
            hashes[row] = np.frombuffer(content_hash(data), np.uint8)
            image = pixels_of(data, job.max_pixels)
            sizes[row] = image.shape[1:]
            if pixels is not None and side is not None:
                pixels[row] = center_view(image, side).numpy()
        except DecodeError as error:
            reasons[row] = str(error)
        except OSError as error:
            reasons[row] = f"cannot be read: {error.strerror or error}"
    return Looked(hashes, sizes, reasons, pixels)


def _writable(item: Item, bad: list[tuple[str, str]]) -> bool:
    try:
        item.id.encode()
    except UnicodeEncodeError:
        bad.append((ascii(item.id), "file name is not UTF-8"))
        return False
    return True


def _chunks(index: Index) -> Iterator[tuple[list[Place], NDArray[np.int32]]]:
    """Places and label numbers of the listed images, `_CHUNK` at a time."""
    for batch in index.batches:
        for start in range(0, batch.num_rows, _CHUNK):
            part = batch.slice(start, _CHUNK)
            columns = (part.column(name).to_pylist() for name in ("id", "shard", "offset", "size"))
            yield list(zip(*columns, strict=True)), part.column("label").to_numpy()


def _results(index: Index, job: Job, workers: int) -> Iterator[tuple[list[Place], NDArray[np.int32], Looked]]:
    """Chunks with what was found, in the order of the listing whatever worker is first."""
    chunks = _chunks(index)
    if workers == 0 or len(index) < _FEW or isinstance(job.source, ArraySource):
        for places, labels in chunks:
            yield places, labels, look(job, places)
        return
    with ProcessPoolExecutor(workers, context(), _start_worker, (job,)) as executor:
        waiting: deque[tuple[list[Place], NDArray[np.int32], Future[Looked]]] = deque()
        try:
            for places, labels in chunks:
                waiting.append((places, labels, executor.submit(_look_in_worker, places)))
                if len(waiting) > 4 * workers:
                    yield _finished(waiting.popleft())
            while waiting:
                yield _finished(waiting.popleft())
        finally:
            executor.shutdown(cancel_futures=True)


def _finished(
    entry: tuple[list[Place], NDArray[np.int32], Future[Looked]],
) -> tuple[list[Place], NDArray[np.int32], Looked]:
    places, labels, future = entry
    return places, labels, future.result()


def _start_worker(job: Job) -> None:
    quiet_worker()
    _worker_job.append(job)


def _look_in_worker(places: list[Place]) -> Looked:
    return look(_worker_job[-1], places)


_worker_job: list[Job] = []


def _good_rows(
    places: list[Place],
    labels: NDArray[np.int32],
    looked: Looked,
    good: NDArray[np.bool_],
    stored: int | None,
) -> Any:
    kept = [place for place, ok in zip(places, good, strict=True) if ok]
    count = len(kept)
    return record_batch(
        {
            "id": [place[0] for place in kept],
            "label": labels[good],
            "truth": np.full(count, -1, np.int32),
            "content_hash": looked.hashes[good],
            "height": looked.sizes[good, 0],
            "width": looked.sizes[good, 1],
            "shard": np.array([place[1] for place in kept], np.int32),
            "offset": np.array([place[2] for place in kept], np.int64),
            "size": np.array([place[3] for place in kept], np.int64),
            "stored": np.full(count, -1, np.int64) if stored is None else np.arange(stored, stored + count),
        }
    )


def _write_header(file: IO[bytes] | None, count: int, side: int | None) -> None:
    """The .npy header of (count, 3, side, side) uint8; numpy pads it to one length for any count."""
    if file is None:
        return
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, side, side)}
    np.lib.format.write_array_header_1_0(file, header)
