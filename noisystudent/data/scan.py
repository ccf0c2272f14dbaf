"""One look at every image of a set: listed, hashed, decoded, measured, and stored where it stays resident."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from noisystudent.data.decode import DecodeError, decode, view
from noisystudent.data.imageset import content_hash
from noisystudent.data.index import HASH_BYTES, SCHEMA, Index, record_batch, writer
from noisystudent.data.sources import ArraySource, Item, Source
from noisystudent.data.workers import context, quiet_worker
from noisystudent.errors import RunError
from noisystudent.runtime import StopFlag

Progress = Callable[[str, int, int], None]
"""Called with (what is done, images done, images in all; 0 while unknown)."""

_CHUNK = 64
_SMALLEST = 1  # a side that has a JPEG read to its end at an eighth of its size, where no pixels are kept
_FEW = 1024
_LISTED = 4096  # items in hand at once while listing: half a kilobyte each
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


Chunk = tuple[int, int, int]
"""(number of a batch of the listing, first row, rows): some images that are looked at together."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to look at images; `resolution` None keeps no pixels."""

    source: Source
    max_pixels: int
    resolution: int | None


@dataclass(frozen=True)
class Looked:
    """What was found: hashes (n, 16), sizes (n, 2), why bad rows are bad, pixels (n, 3, S, S) if kept."""

    hashes: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    reasons: dict[int, str]
    pixels: NDArray[np.uint8] | None


def list_items(source: Source, path: Path, stop: StopFlag, known: frozenset[str] | None = None) -> Listing:
    """Write every item of a source to an Arrow file; memory does not grow with the images.

    Args:
        source: what to list.
        path: the file.
        stop: asked once a batch.
        known: labels that count; any other is 'unknown'. None: all do.

    Raises:
        Stopped: a signal asked for it.
    """
    codes: dict[str, int] = {}
    bad: list[tuple[str, str]] = []
    items = source.items()
    with writer(path, _LISTING) as append:
        while batch := list(islice(items, _LISTED)):
            stop.check()
            good = [item for item in batch if _writable(item, bad)]
            labels = [_code(item.label, codes, known) for item in good]
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
            for part, looked in _results(listing.index, job, workers):
                stop.check()
                good = np.ones(part.num_rows, np.bool_)
                good[list(looked.reasons)] = False
                bad.extend((part.column("id")[row].as_py(), why) for row, why in looked.reasons.items())
                append(_good_rows(part, looked, good, stored if storage else None))
                if pixels is not None and looked.pixels is not None:
                    pixels.write(np.ascontiguousarray(looked.pixels[good]).data)
                stored += int(good.sum())
                done += part.num_rows
                if progress:
                    progress(f"scanning {name}", done, total)
        _write_header(pixels, stored, job.resolution)
    finally:
        if pixels is not None:
            pixels.close()
    return Scan(job.source, Index(path), listing.names, storage, bad, total + len(listing.bad))


def look(job: Job, part: Any) -> Looked:
    """Read, hash, decode and measure some listed images; what fails gets a reason and an empty row."""
    count, side = part.num_rows, job.resolution
    hashes = np.zeros((count, HASH_BYTES), np.uint8)
    sizes = np.zeros((count, 2), np.int32)
    pixels = None if side is None else np.zeros((count, 3, side, side), np.uint8)
    reasons: dict[int, str] = {}
    places = zip(*(part.column(name).to_pylist() for name in ("shard", "offset", "size", "id")), strict=True)
    for row, place in enumerate(places):
        try:
            data = job.source.read(*place)
            hashes[row] = np.frombuffer(content_hash(data), np.uint8)
            picture = decode(data, job.max_pixels, side or _SMALLEST)
            sizes[row] = picture.size
            if pixels is not None and side is not None:
                pixels[row] = view(picture, side).numpy()
        except DecodeError as error:
            reasons[row] = str(error)
        except OSError as error:
            reasons[row] = f"cannot be read: {error.strerror or error}"
    return Looked(hashes, sizes, reasons, pixels)


def _code(label: str | None, codes: dict[str, int], known: frozenset[str] | None) -> int:
    """The number of a label, a new one where it is seen first; -1 is unknown."""
    if label is None or (known is not None and label not in known):
        return -1
    return codes.setdefault(label, len(codes))


def _writable(item: Item, bad: list[tuple[str, str]]) -> bool:
    try:
        item.id.encode()
    except UnicodeEncodeError:
        bad.append((ascii(item.id), "file name is not UTF-8"))
        return False
    return True


def _chunks(index: Index) -> Iterator[Chunk]:
    """The listed images, `_CHUNK` at a time."""
    for number, batch in enumerate(index.batches):
        yield from ((number, start, _CHUNK) for start in range(0, batch.num_rows, _CHUNK))


def _results(index: Index, job: Job, workers: int) -> Iterator[tuple[Any, Looked]]:
    """Chunks of the listing with what was found, in its order whatever worker is first."""
    if workers == 0 or len(index) < _FEW or isinstance(job.source, ArraySource):
        for chunk in _chunks(index):
            part = _part(index, chunk)
            yield part, look(job, part)
        return
    with ProcessPoolExecutor(workers, context(), _start_worker, (job, index)) as executor:
        waiting: deque[tuple[Chunk, Future[Looked]]] = deque()
        try:
            for chunk in _chunks(index):
                waiting.append((chunk, executor.submit(_look_in_worker, chunk)))
                if len(waiting) > 4 * workers:
                    yield _finished(index, *waiting.popleft())
            while waiting:
                yield _finished(index, *waiting.popleft())
        except BrokenProcessPool as error:
            raise RunError(
                "a worker died while the images were scanned; try fewer data.workers, or more memory;"
                " a script of your own needs `if __name__ == '__main__':`"
            ) from error
        finally:
            executor.shutdown(cancel_futures=True)


def _part(index: Index, chunk: Chunk) -> Any:
    number, start, count = chunk
    return index.batches[number].slice(start, count)


def _finished(index: Index, chunk: Chunk, future: Future[Looked]) -> tuple[Any, Looked]:
    return _part(index, chunk), future.result()


def _start_worker(job: Job, index: Index) -> None:
    quiet_worker()
    _in_worker.append((job, index))


def _look_in_worker(chunk: Chunk) -> Looked:
    job, index = _in_worker[-1]
    return look(job, _part(index, chunk))


_in_worker: list[tuple[Job, Index]] = []


def _good_rows(part: Any, looked: Looked, good: NDArray[np.bool_], stored: int | None) -> Any:
    """The good rows of a chunk as rows of the index."""
    kept = part.filter(pa.array(good))
    count = kept.num_rows
    found = {
        "truth": np.full(count, -1, np.int32),
        "content_hash": looked.hashes[good],
        "height": looked.sizes[good, 0],
        "width": looked.sizes[good, 1],
        "stored": np.full(count, -1, np.int64) if stored is None else np.arange(stored, stored + count),
    }
    return record_batch(found | {name: kept.column(name) for name in kept.schema.names})


def _write_header(file: IO[bytes] | None, count: int, side: int | None) -> None:
    """The .npy header of (count, 3, side, side) uint8; numpy pads it to one length for any count."""
    if file is None:
        return
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, side, side)}
    np.lib.format.write_array_header_1_0(file, header)
