"""Batches as a pure function of (seed, step), which no storage and no number of workers changes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from itertools import tee

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import shared_cache

from noisystudent.data.fetcher import Fetcher, Part, Rows
from noisystudent.data.imageset import ImageSet
from noisystudent.data.sampler import Repeated, Sampler
from noisystudent.data.transfer import send, upload
from noisystudent.data.workers import in_workers
from noisystudent.distributed import group
from noisystudent.records import Batch

Boxes = Callable[[str, int, NDArray[np.int32]], NDArray[np.float32] | None]
"""From (stream, step, sizes (B, 2)) to crop boxes (B, 4) as in `ImageSet.fetch`; stream: labeled or pool."""


@dataclass(frozen=True)
class OnlineTeacher:
    """A teacher that labels the pool images of each batch while the student trains.

    Attributes:
        resolution: side R in pixels of the clean views that the teacher labels.
        probs: function from images (b, 3, R, R) uint8 to probabilities (b, K) float32, both on the device.
    """

    resolution: int
    probs: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SelectedPool:
    """The pool images that a student trains on.

    Attributes:
        rows: (n,) rows of the pool.
        repeats: (n,) how often each of them occurs in an epoch of the pool.
        targets: function from positions (b,) in `rows` to pseudo-labels (b, K) float32, or the teacher that
            labels the images during the training.
        window: `Sampler.window`.
    """

    rows: NDArray[np.int64]
    repeats: NDArray[np.int32]
    targets: Callable[[Rows], NDArray[np.float32]] | OnlineTeacher
    window: int | None = None


def joint_batches(
    labeled: ImageSet,
    pool: ImageSet | None,
    selected: SelectedPool | None,
    *,
    labeled_batch: int,
    pool_batch: int,
    resolution: int,
    seed: int,
    start: int,
    stop: int,
    device: torch.device,
    workers: int,
    boxes: Boxes | None = None,
    offsets: tuple[int, int] = (0, 0),
) -> Iterator[Batch]:
    """The rows of this process in the joint batches of the steps start … stop-1: labelled ones, then pool.

    Args:
        labeled: the labelled images. One pass over them is an epoch of the training.
        pool: the unlabelled images.
        selected: the pool images in use. If it or `pool` is None, batches have labelled images only.
        labeled_batch, pool_batch: labelled and pool images per step.
        resolution: side in pixels.
        seed: seed of the order of both streams.
        start, stop: first step, and one past the last.
        device: device that the batches are moved to.
        workers: decoding processes; 0: this process decodes. Batches do not depend on it.
        boxes: draws the crop boxes of a stream. None: clean views.
        offsets: `Sampler.offset` of labelled and pool images.

    Raises:
        RunError: an image is missing or has changed since the scan, or a worker died.
    """
    sizes, cropped = (labeled_batch, pool_batch), boxes is not None
    labeled, pool = labeled.at(resolution), pool.at(resolution) if pool is not None and pool_batch else None
    joint = _Joint(labeled, pool, selected, sizes, seed=seed, offsets=offsets)
    # Positions of the batches that are requested but not delivered: workers fetch several batches ahead.
    waiting: deque[list[Rows]] = deque()

    def requests() -> Iterator[tuple[Part, ...]]:
        for step in range(start, stop):
            waiting.append(joint.draw(step))
            yield joint.parts(step, waiting[-1], boxes)

    joint.start_teacher(range(start, stop), workers, device)
    views = _batches(joint.sets, requests(), resolution, workers=workers, device=device, cropped=cropped)
    for images in views:
        labels, targets = upload(joint.labels(waiting.popleft()), device)
        yield Batch(images=images, labels=labels, pool_targets=targets, whole=joint.whole)


class _Joint:
    """The streams of a joint batch: labelled images and, if there is a pool, its selected images.

    Each selected image occurs `repeats` times in an epoch of the pool. `whole` is `Batch.whole`.
    """

    def __init__(
        self,
        labeled: ImageSet,
        pool: ImageSet | None,
        selected: SelectedPool | None,
        sizes: tuple[int, int],
        *,
        seed: int,
        offsets: tuple[int, int],
    ) -> None:
        self.sets: tuple[ImageSet, ...] = (labeled,)
        self._samplers = [Sampler(len(labeled), sizes[0], seed, "labeled", offsets[0])]
        self._selected = selected if pool is not None else None
        self._online: Iterator[Tensor] | None = None
        self._no_targets = np.empty((0, len(labeled.classes)), np.float32)
        if pool is not None and selected is not None:
            self.sets += (pool,)
            self._expanded = Repeated(selected.repeats)
            self._samplers.append(
                Sampler(len(self._expanded), sizes[1], seed, "pool", offsets[1], window=selected.window)
            )
        self._group = group()
        self._own = self._group.part
        self.whole = (sizes[0], sizes[1] if len(self.sets) > 1 else 0)

    def draw(self, step: int) -> list[Rows]:
        """Rows (L,) of the labelled set and, if there is a pool, positions (B-L,) in the selected rows."""
        drawn = [sampler.at(step) for sampler in self._samplers]
        return [drawn[0], *(self._expanded[at] for at in drawn[1:])]

    def parts(self, step: int, drawn: list[Rows], boxes: Boxes | None) -> tuple[Part, ...]:
        """Images to fetch from each set for one step."""
        rows_by_set = [drawn[0]] if self._selected is None else [drawn[0], self._selected.rows[drawn[1]]]
        streams = zip(("labeled", "pool"), self.sets, rows_by_set, strict=False)  # or the labelled one alone
        parts = [
            Part(self._own(rows), self._own(boxes(stream, step, images.view_sizes(rows))) if boxes else None)
            for stream, images, rows in streams
        ]
        if self._selected is not None and self._selected.window is not None:
            parts[1] = parts[1]._replace(ahead=self._ahead(step, self._selected.rows))
        return tuple(parts)

    def _ahead(self, step: int, selected: Rows) -> Rows:
        """A share of what this machine draws in the next window: its processes have one cache."""
        ranks = self._group.machine
        ahead = self._samplers[1].ahead(step, self._group.rows(self.whole[1], ranks))
        share = np.array_split(ahead, len(ranks))[ranks.index(self._group.rank)]
        return np.unique(selected[self._expanded[share]])

    def labels(self, drawn: list[Rows]) -> tuple[Tensor, Tensor]:
        """Labels (L,) and pseudo-labels (B-L, K) of the drawn images that this process has."""
        drawn = [self._own(rows) for rows in drawn]
        labels = torch.from_numpy(self.sets[0].labels[drawn[0]])
        if self._online is not None:
            return labels, next(self._online)
        stored = None if self._selected is None else self._selected.targets
        targets = stored(drawn[1]) if callable(stored) else self._no_targets
        return labels, torch.from_numpy(targets)

    def start_teacher(self, steps: range, workers: int, device: torch.device) -> None:
        """Set up the batches of clean pool images that an `OnlineTeacher` labels, if one is in use."""
        selected = self._selected
        if selected is None or not isinstance(selected.targets, OnlineTeacher):
            return
        # A copy, because a sampler keeps the order of one epoch, and the two streams may be in two epochs.
        teacher, sampler = selected.targets, copy(self._samplers[1])
        drawn = (self._own(self._expanded[sampler.at(step)]) for step in steps)
        requests = ((Part(selected.rows[at], None),) for at in drawn)
        views = _batches(
            (self.sets[1],), requests, teacher.resolution, workers=workers, device=device, cropped=False
        )
        self._online = map(teacher.probs, views)


def requested_batches(
    images: ImageSet,
    requests: Iterator[Rows],
    *,
    resolution: int,
    device: torch.device,
    workers: int,
    boxes: Callable[[Rows], NDArray[np.float32] | None] | None = None,
) -> Iterator[Tensor]:
    """Views (B, 3, R, R) uint8 on `device` of the rows of each request, in order.

    Args:
        images: the set.
        requests: (B,) rows of the set for each batch.
        resolution: side R in pixels.
        device: device that the batches are moved to.
        workers: decoding processes; 0: this process decodes.
        boxes: returns the crop boxes (B, 4) of rows, as in `ImageSet.fetch`. None: clean views.

    Raises:
        RunError: an image is missing or has changed since the scan, or a worker died.
    """
    parts = ((Part(rows, None if boxes is None else boxes(rows)),) for rows in requests)
    cropped = boxes is not None
    yield from _batches((images,), parts, resolution, workers=workers, device=device, cropped=cropped)


def _batches(
    sets: tuple[ImageSet, ...],
    requests: Iterator[tuple[Part, ...]],
    resolution: int,
    *,
    workers: int,
    device: torch.device,
    cropped: bool,
) -> Iterator[Tensor]:
    """Pixels (B, 3, R, R) uint8 of each request on `device`, from workers unless they are only copied."""
    sets = tuple(images.at(resolution) for images in sets)
    fetcher = Fetcher(sets, resolution)
    if device.type == "cuda" and any(images.on_gpu for images in sets):
        yield from _gpu_batches(fetcher, requests, workers, device)
        return
    if workers == 0 or all(images.direct(resolution, cropped) for images in sets):
        for request in requests:
            yield from upload([fetcher.fetch(request)], device)
        return
    on_gpu = device.type == "cuda"
    receive = Tensor.pin_memory if on_gpu else None  # in another thread of this process
    with closing(in_workers(fetcher.decode, requests, workers, receive=receive)) as batches:
        for images in batches:
            yield send(images, device) if on_gpu else images.to(device)
            # torch keeps small objects of 128 batches; between them memory is lost, hundreds of megabytes.
            shared_cache.free_dead_references()


def _gpu_batches(
    fetcher: Fetcher, requests: Iterator[tuple[Part, ...]], workers: int, device: torch.device
) -> Iterator[Tensor]:
    """The batches of `_batches`, whose files the workers only read."""
    requests, sent = tee(requests)
    read = in_workers(fetcher.encode, requests, workers) if workers else (fetcher.encode(p) for p in requests)
    with closing(read) as batches:
        for encoded, parts in zip(batches, sent, strict=True):
            yield fetcher.decode_on_gpu(parts, encoded, device)
            shared_cache.free_dead_references()  # as in `_batches`
