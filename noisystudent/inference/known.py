"""Features that are computed already, by other runs or before a change of the labels, found by content."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.data.duplicates import Contents, Hashes
from noisystudent.data.index import Index
from noisystudent.embeddings.embed import is_of
from noisystudent.embeddings.parts import Features, Layout, Rows, layout_in, read_index
from noisystudent.run.checksums import problems
from noisystudent.run.record import valid_record
from noisystudent.run.rundir import RECORD, DataDir, EmbeddingsDir, PartsDir, RunDir

_SETS = ("labeled", "val", "test", "pool")


class KnownFeatures:
    """Features of images in the caches of other runs.

    Args:
        caches: the contents of some images, and their features.
        layout: numbers of views and features of all caches.
    """

    def __init__(self, caches: Sequence[tuple[Contents, Features]], layout: Layout) -> None:
        self._caches, self._layout = caches, layout

    def has(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Return (n,) whether the features of each content (n, 16) uint8 are known."""
        known = np.zeros(len(hashes), np.bool_)
        for _, at, _ in self._matches(hashes):
            known[at] = True
        return known

    def __call__(self, hashes: Hashes) -> Tensor:
        """Return the features of each content (n, 16) uint8: (V, n, F) float32, 0 if they are not known."""
        values = torch.zeros((self._layout.views, len(hashes), self._layout.width))
        for features, at, rows in self._matches(hashes):
            for view in range(self._layout.views):
                values[view, torch.from_numpy(at)] = features(rows, view)
        return values

    def _matches(self, hashes: Hashes) -> Iterator[tuple[Features, Rows, Rows]]:
        """Yield features, places of the contents that have them, and their rows; each place at most once."""
        left = np.arange(len(hashes))
        for contents, features in self._caches:
            first = contents.first(hashes[left])
            yield features, left[first >= 0], first[first >= 0]
            left = left[first < 0]


def known_features(runs: Iterable[Path], layout: Layout) -> KnownFeatures | None:
    """Return the features of the same backbone and views in finished and undamaged caches of runs.

    Those that a run has moved to superseded/ count too. None: there are no such caches.

    Args:
        runs: run directories.
        layout: of the features that are wanted.
    """
    caches: list[tuple[Contents, Features]] = []
    seen: set[tuple[int, int]] = set()  # runs of an ablation share files
    for run in map(RunDir, runs):
        stores = [run.data.store, *_superseded_stores(run)]
        for cache in _caches(run):
            folders = {name: folder for name in _SETS if _is_like(folder := cache.features(name), layout)}
            files = {(about.st_dev, about.st_ino) for about in (os.stat(f.index) for f in folders.values())}
            if files <= seen or not _is_intact(cache.path):
                continue
            seen |= files
            for name, folder in folders.items():
                columns = (Index(path) for store in stores if (path := store / f"{name}.arrow").is_file())
                own = (index for index in columns if is_of(folder, index.full("content_hash")))
                for index in islice(own, 1):
                    caches.append((Contents(index, np.ones(len(index), np.bool_)), Features(folder)))
    return KnownFeatures(caches, layout) if caches else None


def _is_like(folder: PartsDir, layout: Layout) -> bool:
    """Return True if a folder has features of the same backbone, views and kind of pixels."""
    index = read_index(folder) if folder.index.is_file() else None
    return index is not None and layout_in(index).is_like(layout)


def _caches(run: RunDir) -> Iterator[EmbeddingsDir]:
    """Caches of a run; those that other images or labels have superseded come last."""
    for pattern in ("embeddings*", "superseded/embeddings*/embeddings*"):
        yield from map(EmbeddingsDir, sorted(run.path.glob(pattern)))


def _superseded_stores(run: RunDir) -> Iterator[Path]:
    """Folders with the columns of the images that a run had before."""
    yield from (DataDir(path).store for path in sorted(run.path.glob("superseded/data-*/data")))


def _is_intact(folder: Path) -> bool:
    """Return True if a stage in `folder` is finished, and its files have the checksums of its record."""
    record = valid_record(folder / RECORD)
    if record is None or record["status"] != "done":
        return False
    return not problems(folder, record.get("files", {}), contents=True)
