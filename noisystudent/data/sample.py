"""A stand-in for the images of a run that are not scanned yet: their numbers, and the pixels of a few."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet
from noisystudent.data.index import Index, writer
from noisystudent.data.listing import Listing, list_sets
from noisystudent.data.near_duplicates import signature_of
from noisystudent.data.prepare import Dataset, is_resident
from noisystudent.data.scan import Job, Scan, scan, uses_workers
from noisystudent.data.sources import Sources
from noisystudent.data.workers import worker_count
from noisystudent.errors import InputError

_ROW_BYTES = 200  # of an image in the manifest and the columns, about
_FIELDS = {"pool": "unlabeled"}  # of `data`, where its name is not that of the set


@dataclass(frozen=True, slots=True)
class Sample:
    """Some images of every set of a run.

    Attributes:
        few: the images.
        whole: the same images, repeated until each set has as many as the listed files. Their labels are not
            those of the run.
        images: number of all listed images.
        seconds: estimated duration of the listing and the scan of all images.
        disk_bytes: estimated size of what the scan writes.
        resident_bytes: size of the decoded pixels of all sets that are resident.
    """

    few: Dataset
    whole: Dataset
    images: int
    seconds: float
    disk_bytes: int
    resident_bytes: int


def take_sample(
    config: DataConfig, sources: Sources, folder: Path, out: Path, *, size: int, progress: Progress
) -> Sample:
    """List every set, and scan `size` images of each, which are spread evenly over it.

    Args:
        config: `data` of the configuration.
        sources: the images.
        folder: an empty folder for the files of the sample.
        out: the run directory. It need not exist, and is not written to.
        size: number of images.
        progress: a signal stops the work.

    Raises:
        InputError: the labelled images have fewer than two classes, none of the images of a set can be read,
            or data.plane is resident and the disk of `out` is too small.
        Stopped: a signal came.
    """
    begin = time.perf_counter()
    listings = list_sets(sources, folder / "listings", config, progress)
    seconds, disk, resident = time.perf_counter() - begin, 0, 0
    (folder / "scratch").mkdir()
    scans: dict[str, Scan] = {}
    workers = worker_count(config.workers)
    for name, source in sources.named():
        listed = listings[name]
        count = len(listed.index)
        some = _spread(listed, folder / f"{name}.listing", min(size, count))
        side = config.resolution if is_resident(config, name, count, _existing(out)) else None
        job = Job(source, config.max_pixels, side, signature_of(config, name, scans))
        begin = time.perf_counter()
        scans[name] = scan(some, job, folder, name, workers=0, progress=progress)
        share = (time.perf_counter() - begin) / max(1, len(some.index))
        seconds += share * count / (workers if uses_workers(source, count, workers) else 1)
        pixels = 0 if side is None else count * 3 * side**2
        disk, resident = disk + pixels + count * _ROW_BYTES, resident + pixels
        if len(scans[name].index) == 0:
            raise InputError(
                f"data.{_FIELDS.get(name, name)}: none of {len(some.index)} images of {source.name} can be"
                " read; `noisystudent check` lists the reasons"
            )
    counts = {name: len(listing.index) for name, listing in listings.items()}
    few = _dataset(config, scans)
    total = sum(counts.values())
    return Sample(few, _repeated(few, _numbers(config, counts)), total, seconds, disk, resident)


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists: its disk is that of the path."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _spread(listing: Listing, path: Path, size: int) -> Listing:
    """`size` images of a listing at equal distances, as a listing of their own in a new file."""
    rows = np.linspace(0, max(0, len(listing.index) - 1), size).round().astype(np.int64)
    table = pa.Table.from_batches(listing.index.batches)
    with writer(path, table.schema) as append:
        for batch in table.take(pa.array(rows)).combine_chunks().to_batches():
            append(batch)
    return Listing(Index(path), listing.names, [])


def _dataset(config: DataConfig, scans: dict[str, Scan]) -> Dataset:
    """The scanned images as the sets of a run; without val and a pool, labelled images are in their place."""
    classes = tuple(scans["labeled"].names)

    def opened(name: str) -> ImageSet:
        of = scans.get(name, scans["labeled"])
        return ImageSet(
            name, classes, of.index, of.source, of.storage, config.max_pixels, decoder=config.decoder
        )

    test = opened("test") if "test" in scans else None
    tags = tuple(scans["pool"].names) if config.pool_tags and "pool" in scans else ()
    return Dataset(classes, opened("labeled"), opened("val"), test, opened("pool"), tags=tags)


def _numbers(config: DataConfig, counts: dict[str, int]) -> dict[str, int]:
    """Number of images of each set, if no image is damaged or a copy of another."""
    numbers = {"pool": 0, **counts}
    if "val" not in counts:
        numbers["val"] = max(1, round(config.val_fraction * counts["labeled"]))
        numbers["labeled"] = max(1, counts["labeled"] - numbers["val"])
    return numbers


def _repeated(few: Dataset, numbers: dict[str, int]) -> Dataset:
    def repeated(images: ImageSet) -> ImageSet:
        return images.subset(np.resize(np.arange(len(images)), numbers[images.name]))

    test = None if few.test is None else repeated(few.test)
    return replace(
        few, labeled=repeated(few.labeled), val=repeated(few.val), test=test, pool=repeated(few.pool)
    )
