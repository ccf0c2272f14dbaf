"""The scan: read, hash, decode and measure each listed image once, and store the pixels of a resident set."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from noisystudent.console import Progress
from noisystudent.data.decode import DecodeError, decode, view
from noisystudent.data.index import HASH_BYTES, SCHEMA, Index, content_hash, record_batch, writer
from noisystudent.data.listing import Listing
from noisystudent.data.phash import SIDE, Signature, signatures, thumbnail
from noisystudent.data.sources import Place, Source, prefetch
from noisystudent.data.sources.base import LOST, Unreadable
from noisystudent.data.workers import in_workers

_CHUNK = 64  # images that a worker scans at once
_AHEAD = 4  # chunks for each worker that are drawn but not used: bounds memory, and keeps the workers busy
_SMALLEST = 1  # side of a view of which only its size is used: 1/8 of the size of the file
_FEW = 1024  # with fewer images, starting worker processes costs more time than it saves


@dataclass(frozen=True)
class Scan:
    """A set after the scan.

    Attributes:
        source: where the images are.
        index: columns of the images that can be decoded, on disk.
        names: label names. A label of `index` is a position in them.
        storage: file of the decoded pixels (N, 3, S, S) uint8. None: no pixels are kept.
        signatures: file of the signatures (N, B) uint8 of the images. None: there are none.
        bad: (id, reason) of the images that cannot be used.
        lost: those of `bad` that stand for the lost images of a shard, or that a store did not give.
        listed: number of all listed images, including the bad ones.
    """

    source: Source
    index: Index
    names: list[str]
    storage: Path | None
    signatures: Path | None
    bad: list[tuple[str, str]]
    lost: list[tuple[str, str]]
    listed: int


Chunk = tuple[int, int, int]
"""(record batch of the listing, first row in it, number of rows): images that are scanned together."""


@dataclass(frozen=True)
class Job:
    """Parameters of a scan that workers need.

    Attributes:
        source: where the images are.
        max_pixels: images with more pixels are refused.
        resolution: side S of the pixels to keep. None: no pixels are kept.
        signature: what is kept of each image to find near copies. None: nothing.
    """

    source: Source
    max_pixels: int
    resolution: int | None
    signature: Signature | None = None


@dataclass(frozen=True)
class ScannedChunk:
    """Results for the n images of one chunk.

    Attributes:
        hashes: (n, 16) content hashes.
        sizes: (n, 2) height and width of the originals in pixels.
        reasons: for each row that cannot be used, the reason.
        lost: those of these rows that stand for the lost images of a shard, or that a store did not give.
        pixels: (n, 3, S, S) clean views. None: no pixels are kept.
        signatures: (n, B) signatures. None: none are kept.
    """

    hashes: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    reasons: dict[int, str]
    lost: frozenset[int]
    pixels: NDArray[np.uint8] | None
    signatures: NDArray[np.uint8] | None


def scan(
    listing: Listing,
    job: Job,
    folder: Path,
    name: str,
    *,
    workers: int,
    progress: Progress,
) -> Scan:
    """Read, hash, decode and measure every listed image once, in order.

    Args:
        listing: the images.
        job: the source, and what to keep.
        folder: `scratch/<name>.arrow` is written into it, and `<name>.npy` (N, 3, S, S) uint8 if pixels are
            kept, and `scratch/<name>.signatures` if signatures are.
        name: name of the set.
        workers: decoding processes; 0: this process decodes.
        progress: advances after every chunk. A signal stops the scan between two chunks.

    Raises:
        RunError: a worker died or does not answer.
        Stopped: a signal stopped the scan.
    """
    bad, lost = list(listing.bad), list[tuple[str, str]]()
    total, done, stored = len(listing.index), 0, 0
    path = folder / "scratch" / f"{name}.arrow"
    storage = None if job.resolution is None else folder / f"{name}.npy"
    signed = None if job.signature is None else path.with_suffix(".signatures")
    with ExitStack() as files, writer(path, SCHEMA) as append:
        pixels, signature = (
            files.enter_context(file.open("wb")) if file else None for file in (storage, signed)
        )
        results = files.enter_context(closing(_results(listing.index, job, workers)))
        _write_header(pixels, 0, job.resolution)  # reserves its place; the count is not known yet
        for part, result in results:
            progress.check()
            good = np.ones(part.num_rows, np.bool_)
            good[list(result.reasons)] = False
            unusable, not_given = _unusable(part, result)
            bad += unusable
            lost += not_given
            append(_good_rows(part, result, good, stored if storage else None))
            for file, array in ((pixels, result.pixels), (signature, result.signatures)):
                if file is not None and array is not None:
                    file.write(np.ascontiguousarray(array[good]).data)
            stored, done = stored + int(good.sum()), done + part.num_rows
            progress.advance(f"scanning {name}", done, total)
        _write_header(pixels, stored, job.resolution)
    return Scan(job.source, Index(path), listing.names, storage, signed, bad, lost, total + len(listing.bad))


def _unusable(part: Any, result: ScannedChunk) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(id, reason) of the unusable images, and of those among them that are `Scan.lost`."""
    ids = part.column("id")
    entries = {row: (ids[row].as_py(), reason) for row, reason in result.reasons.items()}
    return [*entries.values()], [entries[row] for row in entries if row in result.lost]


def scan_chunk(job: Job, part: Any) -> ScannedChunk:
    """Read, hash, decode and measure the images of `part`, a record batch of the listing.

    An image that fails gets a reason; its row in the arrays has no meaning.
    """
    count, side = part.num_rows, job.resolution
    hashes = np.zeros((count, HASH_BYTES), np.uint8)
    sizes = np.zeros((count, 2), np.int32)
    pixels = None if side is None else np.zeros((count, 3, side, side), np.uint8)
    thumbnails = None if job.signature is None else np.zeros((count, SIDE, SIDE, 3), np.uint8)
    # without pixels to keep, a JPEG is decoded at a fraction of its size, but to its end
    least = side or (_SMALLEST if thumbnails is None else SIDE // 2)
    reasons: dict[int, str] = {}
    lost = set[int]()
    columns = (part.column(name).to_pylist() for name in ("shard", "offset", "size", "id"))
    places: list[Place] = list(zip(*columns, strict=True))
    prefetch(job.source, places)
    for row, place in enumerate(places):
        try:
            data = job.source.read(*place)
            # of the file's bytes and not of the pixels: it does not change with the version of a decoder
            hashes[row] = np.frombuffer(content_hash(data), np.uint8)
            image = decode(data, job.max_pixels, least)
            sizes[row] = image.size
            if pixels is not None and side is not None:
                pixels[row] = view(image, side).numpy()
            if thumbnails is not None:
                thumbnails[row] = thumbnail(image.pixels)
        except DecodeError as error:
            reasons[row] = str(error)
        except OSError as error:
            reasons[row] = f"cannot be read: {error.strerror or error}"
            if isinstance(error, Unreadable) or place[2] == LOST:
                lost.add(row)
    signed = None if thumbnails is None or job.signature is None else signatures(thumbnails, job.signature)
    return ScannedChunk(hashes, sizes, reasons, frozenset(lost), pixels, signed)


def _chunks(index: Index) -> Iterator[Chunk]:
    """All listed images in chunks of at most `_CHUNK`."""
    for number, batch in enumerate(index.batches):
        yield from ((number, start, _CHUNK) for start in range(0, batch.num_rows, _CHUNK))


def _results(index: Index, job: Job, workers: int) -> Generator[tuple[Any, ScannedChunk]]:
    """Rows of the listing and their results, chunk by chunk, in the order of the listing."""
    if not uses_workers(job.source, len(index), workers):
        for chunk in _chunks(index):
            yield _part(index, chunk), _scan_rows(job, index, chunk)
        return
    scan_rows = partial(_scan_rows, job, index)
    with closing(in_workers(scan_rows, _chunks(index), workers, ahead=_AHEAD)) as results:
        for chunk, result in zip(_chunks(index), results, strict=True):
            yield _part(index, chunk), result


def uses_workers(source: Source, count: int, workers: int) -> bool:
    """True if worker processes scan a set of `count` images."""
    return workers > 0 and count >= _FEW and not source.decoded


def _part(index: Index, chunk: Chunk) -> Any:
    """The rows of a chunk as a record batch."""
    number, start, count = chunk
    return index.batches[number].slice(start, count)


def _scan_rows(job: Job, index: Index, chunk: Chunk) -> ScannedChunk:
    """`scan_chunk` for the rows of a chunk, which a worker reads from the file of the index."""
    return scan_chunk(job, _part(index, chunk))


def _good_rows(part: Any, result: ScannedChunk, good: NDArray[np.bool_], stored: int | None) -> Any:
    """The good rows of a chunk as a record batch of the index.

    Args:
        part: the listed rows (n).
        result: their results.
        good: (n,) True for rows to keep.
        stored: row of the first of them in the array of decoded pixels. None: no pixels are kept.
    """
    kept = part.filter(pa.array(good))
    count = kept.num_rows
    columns = {
        "truth": np.full(count, -1, np.int32),  # `prepare` fills it in when the classes are known
        "content_hash": result.hashes[good],
        "height": result.sizes[good, 0],
        "width": result.sizes[good, 1],
        "stored": np.full(count, -1, np.int64) if stored is None else np.arange(stored, stored + count),
    }
    return record_batch(columns | {name: kept.column(name) for name in kept.schema.names})


def _write_header(file: IO[bytes] | None, count: int, side: int | None) -> None:
    """Write the .npy header of an array (count, 3, side, side) uint8 at the start of the file.

    numpy pads headers to a multiple of 64 bytes, with space for a larger count. The header can therefore be
    replaced later, when the count is known.
    """
    if file is None:
        return
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, side, side)}
    np.lib.format.write_array_header_1_0(file, header)
