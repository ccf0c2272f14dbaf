"""Preparation of all image sets: scan, classes, splits and leaks, written to a folder that opens at once."""

from __future__ import annotations

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
from noisystudent.console import Progress
from noisystudent.data.duplicates import Mask
from noisystudent.data.imageset import ImageSet, to_device
from noisystudent.data.index import SCHEMA, Index, writer
from noisystudent.data.listing import Listing, list_sets
from noisystudent.data.lists import bad_notes, leak_notes, where, write_leaks, write_ledger
from noisystudent.data.near_duplicates import near_copies, signature_of
from noisystudent.data.scan import Job, Scan, scan
from noisystudent.data.sources import Sources
from noisystudent.data.splits import Members, assign, classes_of, label_map, require_images
from noisystudent.data.workers import worker_count
from noisystudent.errors import InputError, RunError, readable_size
from noisystudent.run.files import atomic, read_json, remove, write_json
from noisystudent.run.rundir import DataDir

_GIB = 1024**3
_FORMAT = 1  # of dataset.json and the files of store/


@dataclass(frozen=True)
class Dataset:
    """The image sets of a run.

    Attributes:
        classes: class names; labels are indices into them.
        labeled: the labelled images to train on.
        val: the labelled images for all choices of the run.
        test: the labelled images that are evaluated at the end. None: not given.
        pool: the unlabelled images; may be empty.
        notes: messages for the user.
        tags: with `data.pool_tags`, the folder names of the pool; the pool's labels are indices into them.
    """

    classes: tuple[str, ...]
    labeled: ImageSet
    val: ImageSet
    test: ImageSet | None
    pool: ImageSet
    notes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def to_device(self, device: torch.device) -> Dataset:
        """The same sets, with their stored pixels on a GPU as far as they fit there; the pool comes last."""
        given = [] if self.test is None else [self.test]
        labeled, val, *test, pool = to_device([self.labeled, self.val, *given, self.pool], device)
        return replace(self, labeled=labeled, val=val, test=test[0] if test else None, pool=pool)


def prepare(
    config: DataConfig,
    sources: Sources,
    out: DataDir,
    seed: int,
    progress: Progress,
    *,
    listings: dict[str, Listing] | None = None,
    kept: bool = True,
) -> None:
    """Decode every image once and write the files that `open_dataset` and later stages read.

    Files in `out`: manifest.parquet (one row for each image in use), ledger.csv (unusable images and the
    reasons), leaks.csv (images removed as copies or near copies, and copies that stay), store/ (columns and
    decoded pixels, memory-mapped) and, last, dataset.json. A call after a kill starts the scan again. `seed`
    is for the val split. `listings` is the result of `list_sets`, called here if None. `kept`: `out` stays.

    Raises:
        InputError: too many bad images, too few classes, a class of val or test that the labelled images
            lack, or a disk that is too small.
        RunError: the disk is full.
        Stopped: a signal stopped the scan.
    """
    out.path.mkdir(parents=True, exist_ok=True)
    remove(out.dataset)  # first: it marks a finished folder, and must not describe older files of store/
    with atomic(out.store) as store:
        (scratch := store / "scratch").mkdir(parents=True)
        listings = listings or list_sets(sources, scratch / "listings", config, progress)
        scans: dict[str, Scan] = {}
        workers = worker_count(config.workers)
        for name, source in sources.named():
            listing = listings[name]
            side = config.resolution if is_resident(config, name, len(listing.index), store) else None
            job = Job(source, config.max_pixels, side, signature_of(config, name, scans))
            scans[name] = scan(listing, job, store, name, workers=workers, progress=progress)
        # Ledger and leaks are written before the checks that may stop the run: they explain the errors.
        write_ledger(out.ledger, scans, config.max_bad_fraction, kept=kept)
        classes, class_notes = classes_of(scans)
        members, leaks, notes = assign(scans, classes, config.val_fraction, seed)
        leaks += near_copies(scans, members, config, progress)
        write_leaks(out.leaks, scans, leaks)
        require_images(members, leaks, scans, classes, where(out.leaks, kept))
        _write_rows(store, out.manifest, scans, members, classes, tagged=config.pool_tags)
        remove(scratch)
    source_notes = [note for name, _ in sources.named() for note in _source_notes(name, scans[name])]
    all_notes = [*source_notes, *bad_notes(scans), *class_notes, *notes, *leak_notes(leaks, scans)]
    content = {"format": _FORMAT, "classes": classes, "notes": all_notes, "sets": _storage(members, scans)}
    content["counts"] = {name: int(mask.sum()) for name, (_, mask) in members.items()}
    content["tags"] = scans["pool"].names if config.pool_tags and "pool" in scans else []
    write_json(out.dataset, content)


def open_dataset(out: DataDir, config: DataConfig, sources: Sources) -> Dataset:
    """Open the folder that `prepare` has written, without scanning or decoding images.

    Raises:
        RunError: `prepare` has not finished in `out`, its format is of another version of this program, or a
            source is not given any more.
    """
    path = out.dataset
    if not path.exists():
        raise RunError(f"{path} is missing: the images were not prepared; run again")
    content = read_json(path)
    if content.get("format") != _FORMAT:
        raise RunError(
            f"{path} has format {content.get('format')}, not {_FORMAT}; delete {out.path} and run again"
        )
    by_name = dict(sources.named())
    classes = tuple(content["classes"])
    store = out.store

    def opened(name: str) -> ImageSet:
        entry = content["sets"][name]
        if entry["scan"] not in by_name:
            raise RunError(
                f"{path} was made with data.{entry['scan']} given; give it again, or delete {out.path}"
            )
        storage = store / f"{entry['scan']}.npy" if entry["resident"] else None
        index = Index(store / f"{name}.arrow")
        source, limit = by_name[entry["scan"]], config.max_pixels
        return ImageSet(name, classes, index, source, storage, limit, decoder=config.decoder)

    test = opened("test") if "test" in content["sets"] else None
    notes = tuple(content["notes"])
    tags = tuple(content.get("tags", ()))
    return Dataset(classes, opened("labeled"), opened("val"), test, opened("pool"), notes, tags)


def is_resident(config: DataConfig, name: str, count: int, store: Path) -> bool:
    """True if the decoded pixels of a set of `count` images are stored.

    Raises:
        InputError: data.plane is resident, but the disk is too small.
    """
    size, free = count * 3 * config.resolution**2, shutil.disk_usage(store).free
    if config.plane == "resident" and size > free:
        more = readable_size(size - free)
        raise InputError(
            f"data.plane is resident, but {name} takes {readable_size(size)} decoded, {more} more than"
            f" {store.parent} has free; choose streamed, a smaller data.resolution or another --out"
        )
    fits = size <= min(config.resident_gib * _GIB, free)
    return config.plane == "resident" or (config.plane == "auto" and fits)


def _source_notes(name: str, scanned: Scan) -> tuple[str, ...]:
    """Notes of a set's source; reading in random order matters only for streamed training images."""
    shuffled = name in ("labeled", "pool")  # val and test are read in order
    return scanned.source.notes(streamed=shuffled and scanned.storage is None)


def _write_rows(
    store: Path,
    manifest: Path,
    scans: dict[str, Scan],
    members: Members,
    classes: tuple[str, ...],
    *,
    tagged: bool,
) -> None:
    """Write the rows of each set to `store/<set>.arrow` and to the manifest, batch by batch.

    Args:
        store: folder of the Arrow files.
        manifest: path of manifest.parquet.
        scans: the scans.
        members: the images of each set.
        classes: class names of the run.
        tagged: True if the pool's folder names are its labels (data.pool_tags).
    """
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


def _storage(members: Members, scans: dict[str, Scan]) -> dict[str, dict[str, object]]:
    """For each set: the name of its scan, and whether its decoded pixels are stored."""
    return {
        name: {"scan": part, "resident": scans[part].storage is not None}
        for name, (part, _) in members.items()
    }


def _kept(index: Index, mask: Mask) -> Iterator[Any]:
    """Record batches of the rows of an index where `mask` is True."""
    start = 0
    for batch in index.batches:
        kept = mask[start : start + batch.num_rows]
        if kept.any():
            yield batch.filter(pa.array(kept))
        start += batch.num_rows


def _relabeled(batch: Any, codes: NDArray[np.int32], is_pool: bool, tagged: bool) -> Any:
    """A record batch of a scan with class numbers in place of its label numbers.

    The classes of pool images become their `truth`, and their `label` stays unknown (with `tagged`: the
    number of the tag), so that a training cannot use them by mistake.

    Args:
        batch: rows of the scan.
        codes: class number of each label number, from `label_map`.
        is_pool: True for the pool.
        tagged: True if the pool's folder names are its labels.
    """
    numbers = batch.column("label").to_numpy()
    classes = codes[numbers]
    unknown = np.full(len(classes), -1, np.int32)
    if is_pool:
        changed = {"label": numbers if tagged else unknown, "truth": classes}
    else:
        changed = {"label": classes, "truth": unknown}
    columns = [pa.array(changed[name]) if name in changed else batch.column(name) for name in SCHEMA.names]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
