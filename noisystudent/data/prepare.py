"""Scan every set once, settle classes, splits and leaks, and leave a folder that opens in no time."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from noisystudent.config import DataConfig
from noisystudent.data.assign import Leak, Members, assign, classes_of, label_map, require_images
from noisystudent.data.contents import Mask
from noisystudent.data.imageset import ImageSet
from noisystudent.data.index import SCHEMA, Index, writer
from noisystudent.data.scan import Job, Progress, Scan, list_items, scan
from noisystudent.data.sources import Sources
from noisystudent.data.workers import worker_count
from noisystudent.errors import InputError, RunError
from noisystudent.rundir import atomic, read_json, remove, write_json
from noisystudent.runtime import StopFlag

_GIB = 1024**3
_IDS = 4096
_FORMAT = 1


@dataclass(frozen=True)
class Dataset:
    """The sets of a run, ready to be fetched from.

    Attributes:
        notes: lines the user should see.
        tags: with data.pool_tags the folder names of the pool, which its labels number.
    """

    classes: tuple[str, ...]
    labeled: ImageSet
    val: ImageSet
    test: ImageSet | None
    pool: ImageSet
    notes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def to_device(self, device: torch.device) -> Dataset:
        """The same sets, each with its resident pixels on a GPU if they fit there."""
        test = None if self.test is None else self.test.to_device(device)
        labeled, val, pool = (images.to_device(device) for images in (self.labeled, self.val, self.pool))
        return replace(self, labeled=labeled, val=val, test=test, pool=pool)


def prepare(
    config: DataConfig,
    sources: Sources,
    out: Path,
    seed: int,
    stop: StopFlag,
    progress: Progress | None = None,
) -> Dataset:
    """Decode every image once and write what later stages read.

    `out` receives manifest.parquet (a row an image in use), ledger.csv (images that cannot be used, and why),
    leaks.csv (images removed because their bytes are in another set or occur twice in the pool), store/
    (columns and resident pixels, memory-mapped) and last dataset.json. Killed at any moment, the next call
    starts the scan anew.

    Raises:
        InputError: too many bad images, too few classes, a foreign class in val or test, too small a disk.
        RunError: the disk is full.
        Stopped: a signal asked for it.
    """
    out.mkdir(parents=True, exist_ok=True)
    remove(out / "dataset.json")
    with atomic(out / "store") as store:
        scratch = store / "scratch"
        scratch.mkdir(parents=True)
        scans: dict[str, Scan] = {}
        for name, source in sources.named():
            # a pool may have a million folders: only those named as a class are its hidden truth
            known = frozenset(scans["labeled"].names) if name == "pool" and not config.pool_tags else None
            listing = list_items(source, scratch / f"{name}.listing", stop, known)
            _check_listing(name, listing.names, source.name)
            side = config.resolution if _stays(config, name, len(listing.index), store) else None
            job = Job(source, config.max_pixels, side)
            scans[name] = scan(listing, job, store, name, worker_count(config.workers), stop, progress)
        _write_ledger(out / "ledger.csv", scans, config.max_bad_fraction)
        classes, class_notes = classes_of(scans)
        members, leaks, notes = assign(scans, classes, config.val_fraction, seed)
        _write_leaks(out / "leaks.csv", scans, leaks)
        require_images(members, scans, classes, out / "leaks.csv")
        _write_rows(store, out / "manifest.parquet", scans, members, classes, config.pool_tags)
        remove(scratch)
    said = [note for name, _ in sources.named() for note in _source_notes(name, scans[name])]
    said += _bad_notes(scans)
    sets = _places(members, scans)
    content = {"format": _FORMAT, "classes": classes, "notes": said + class_notes + notes, "sets": sets}
    content["counts"] = {name: int(mask.sum()) for name, (_, mask) in members.items()}
    content["tags"] = scans["pool"].names if config.pool_tags and "pool" in scans else []
    write_json(out / "dataset.json", content)
    return open_dataset(out, config, sources)


def open_dataset(out: Path, config: DataConfig, sources: Sources) -> Dataset:
    """Read back what `prepare` wrote; decodes and scans nothing.

    Raises:
        RunError: `prepare` has not finished there, or another version of this program did it.
    """
    path = out / "dataset.json"
    if not path.exists():
        raise RunError(f"{path} is missing: the images were not prepared; run again")
    content = read_json(path)
    if content.get("format") != _FORMAT:
        raise RunError(
            f"{path} has format {content.get('format')}, not {_FORMAT}; delete {out} and run again"
        )
    by_name = dict(sources.named())
    classes = tuple(content["classes"])
    store = out / "store"

    def opened(name: str) -> ImageSet:
        entry = content["sets"][name]
        if entry["scan"] not in by_name:
            raise RunError(f"{path} was made with data.{entry['scan']} given; give it again, or delete {out}")
        storage = store / f"{entry['scan']}.npy" if entry["resident"] else None
        index = Index(store / f"{name}.arrow")
        return ImageSet(name, classes, index, by_name[entry["scan"]], storage, config.max_pixels)

    test = opened("test") if "test" in content["sets"] else None
    notes = tuple(content["notes"])
    tags = tuple(content.get("tags", ()))
    return Dataset(classes, opened("labeled"), opened("val"), test, opened("pool"), notes, tags)


def _stays(config: DataConfig, name: str, count: int, store: Path) -> bool:
    """Whether a set of `count` images is decoded once and kept.

    Raises:
        InputError: it was asked for, and the disk is too small.
    """
    size, free = count * 3 * config.resolution**2, shutil.disk_usage(store).free
    if config.plane == "resident" and size > free:
        raise InputError(
            f"data.plane is resident, but {name} takes {size / _GIB:.1f} GiB decoded and {store.parent} has "
            f"{free / _GIB:.1f} GiB free; streamed, a smaller data.resolution or another --out is right"
        )
    fits = size <= min(config.resident_gib * _GIB, free)
    return config.plane == "resident" or (config.plane == "auto" and fits)


def _check_listing(name: str, labels: list[str], source: str) -> None:
    if name == "labeled" and len(labels) < 2:
        only = f"only class {labels[0]!r}" if labels else "no class"
        raise InputError(f"data.labeled: {source} holds {only}; at least two classes are needed")


def _write_ledger(path: Path, scans: dict[str, Scan], max_bad_fraction: float) -> None:
    """Write the ledger, then judge it: it is there to be read even when the run stops."""
    rows = ((name, *entry) for name, scanned in scans.items() for entry in scanned.bad)
    _write_csv(path, ("set", "id", "reason"), rows)
    for name, scanned in scans.items():
        bad = len(scanned.bad)
        if bad > max_bad_fraction * scanned.listed or (bad and bad == scanned.listed):
            first, reason = scanned.bad[0]
            raise InputError(
                f"{name}: {bad} of {scanned.listed} images cannot be read, more than data.max_bad_fraction "
                f"{max_bad_fraction}; the first is {first} ({reason}); all are in {path}"
            )


def _source_notes(name: str, scanned: Scan) -> tuple[str, ...]:
    shuffled = name in ("labeled", "pool")  # val and test are read in order
    return scanned.source.notes(streamed=shuffled and scanned.storage is None)


def _bad_notes(scans: dict[str, Scan]) -> list[str]:
    return [
        f"{name}: {len(scanned.bad)} of {scanned.listed} images cannot be read and are left out (ledger.csv)"
        for name, scanned in scans.items()
        if scanned.bad
    ]


def _write_leaks(path: Path, scans: dict[str, Scan], leaks: list[Leak]) -> None:
    _write_csv(path, ("set", "id", "found_in", "id_there"), _leak_rows(scans, leaks))


def _leak_rows(scans: dict[str, Scan], leaks: list[Leak]) -> Iterator[tuple[str, ...]]:
    for leak in leaks:
        here, there = scans[leak.scan].index, scans[leak.other_scan].index
        for start in range(0, len(leak.rows), _IDS):
            part = slice(start, start + _IDS)
            ids = zip(here.ids(leak.rows[part]), there.ids(leak.other_rows[part]), strict=True)
            yield from ((leak.name, mine, leak.other, other) for mine, other in ids)


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> None:
    with atomic(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(header)
        lines.writerows(rows)


def _write_rows(
    store: Path,
    manifest: Path,
    scans: dict[str, Scan],
    members: Members,
    classes: tuple[str, ...],
    tagged: bool,
) -> None:
    """Each set's rows as `store/<set>.arrow`, and all of them in the manifest, a batch at a time."""
    schema = pa.schema([("set", pa.string()), ("row", pa.int64()), *SCHEMA])
    schema = schema.with_metadata({"classes": json.dumps(classes)})
    with atomic(manifest) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as parquet:
        for name, (part, mask) in members.items():
            codes = label_map(scans[part].names, classes)
            with writer(store / f"{name}.arrow", SCHEMA) as append:
                done = 0
                for batch in _kept(scans[part].index, mask):
                    final = _relabeled(batch, codes, name == "pool", tagged)
                    append(final)
                    numbers = pa.array(np.arange(done, done + len(final)))
                    columns = [pa.array([name] * len(final)), numbers, *final.columns]
                    parquet.write_table(pa.Table.from_arrays(columns, schema=schema))
                    done += len(final)


def _places(members: Members, scans: dict[str, Scan]) -> dict[str, dict[str, object]]:
    """In which scan each set is found, and whether its pixels are kept."""
    return {
        name: {"scan": part, "resident": scans[part].storage is not None}
        for name, (part, _) in members.items()
    }


def _kept(index: Index, mask: Mask) -> Iterator[Any]:
    """The rows of an index that are used, in batches."""
    start = 0
    for batch in index.batches:
        mine = mask[start : start + batch.num_rows]
        if mine.any():
            yield batch.filter(pa.array(mine))
        start += batch.num_rows


def _relabeled(batch: Any, codes: NDArray[np.int32], is_pool: bool, tagged: bool) -> Any:
    """Label numbers of the scan as class numbers; the pool's are its hidden truth, and its tags if wanted."""
    tags = batch.column("label").to_numpy()
    labels = codes[tags]
    unknown = np.full(len(labels), -1, np.int32)
    of_pool = {"label": tags if tagged else unknown, "truth": labels}
    given = of_pool if is_pool else {"label": labels, "truth": unknown}
    columns = [pa.array(given[name]) if name in given else batch.column(name) for name in SCHEMA.names]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
