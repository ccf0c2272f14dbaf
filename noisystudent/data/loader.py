"""Batches as a pure function of (seed, step), the same from memory or files, by any number of workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import shared_cache
from torch.utils.data import DataLoader, Dataset, default_collate

from noisystudent.data.imageset import ImageSet
from noisystudent.data.streams import Stream
from noisystudent.data.workers import context, quiet_worker
from noisystudent.errors import RunError
from noisystudent.records import Batch

Rows = NDArray[np.int64]

Boxes = Callable[[str, int, NDArray[np.int32]], NDArray[np.float32] | None]
"""(stream, step, sizes (B, 2)) to crop windows (B, 4) as fractions (top, left, height, width), or None."""


@dataclass(frozen=True)
class Speaker:
    """A teacher that answers while its student learns.

    Attributes:
        resolution: side R in pixels of the clean views it is shown.
        answer: (b, 3, R, R) uint8 on the device to probabilities (b, K) float32 there.
    """

    resolution: int
    answer: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Chosen:
    """The pool images a student learns from.

    Attributes:
        rows: (n,) rows of the pool.
        repeats: (n,) how often each stands in an epoch of the pool.
        targets: positions (b,) in `rows` to pseudo-labels (b, K) float32; or who makes them on the way.
    """

    rows: NDArray[np.int64]
    repeats: NDArray[np.int32]
    targets: Callable[[Rows], NDArray[np.float32]] | Speaker


class Part(NamedTuple):
    """What to fetch from one set: rows (B,), and crop windows (B, 4) or None for the clean view."""

    rows: Rows
    boxes: NDArray[np.float32] | None


def joint_batches(
    labeled: ImageSet,
    pool: ImageSet | None,
    chosen: Chosen | None,
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
) -> Iterator[Batch]:
    """Joint batches of steps start … stop-1: labelled rows first, then pool rows.

    Args:
        labeled: what epochs are counted on.
        pool: the pile.
        chosen: the pool images in use. With no `chosen` or no `pool`, labels alone.
        labeled_batch: labelled images a step.
        pool_batch: pool images a step.
        resolution: side in pixels.
        seed: of both streams.
        start: first step.
        stop: one past the last step.
        device: where batches end.
        workers: decoding processes; 0 decodes here. Batches do not depend on it.
        boxes: draws crop windows for stream `labeled` or `pool`; None is the clean centre view.

    Raises:
        RunError: an image vanished or changed since the scan, or a worker died.
    """
    joint = _Joint(labeled, pool if pool_batch else None, chosen, (labeled_batch, pool_batch), seed)
    waiting: deque[list[Rows]] = deque()  # drawn, and not yet delivered by the workers

    def requests() -> Iterator[tuple[Part, ...]]:
        for step in range(start, stop):
            waiting.append(joint.draw(step))
            yield joint.parts(step, waiting[-1], boxes)

    joint.listen(range(start, stop), workers, device)
    for images in _fetched(joint.sets, requests(), resolution, workers, device, boxes is not None):
        labels, targets = joint.answers(waiting.popleft())
        yield Batch(
            images=images,
            labels=labels.to(device, non_blocking=True),
            pool_targets=targets.to(device, non_blocking=True),
        )


class _Joint:
    """The labelled stream and, with a pool, the stream over its chosen images, repeated as selected."""

    def __init__(
        self,
        labeled: ImageSet,
        pool: ImageSet | None,
        chosen: Chosen | None,
        sizes: tuple[int, int],
        seed: int,
    ) -> None:
        self.sets: tuple[ImageSet, ...] = (labeled,)
        self._streams = [Stream(len(labeled), sizes[0], seed, "labeled")]
        self._chosen = chosen if pool is not None else None
        self._spoken: Iterator[Tensor] | None = None
        self._no_targets = np.empty((0, len(labeled.classes)), np.float32)
        if pool is not None and chosen is not None:
            self.sets += (pool,)
            self._expanded = np.repeat(np.arange(len(chosen.rows), dtype=np.int32), chosen.repeats)
            self._streams.append(Stream(len(self._expanded), sizes[1], seed, "pool"))

    def draw(self, step: int) -> list[Rows]:
        """Rows of the labelled set, then positions in the chosen images."""
        drawn = [stream.at(step) for stream in self._streams]
        return [drawn[0], *(self._expanded[at].astype(np.int64) for at in drawn[1:])]

    def parts(self, step: int, drawn: list[Rows], boxes: Boxes | None) -> tuple[Part, ...]:
        """What to fetch from each set for one step."""
        rows = [drawn[0]] if self._chosen is None else [drawn[0], self._chosen.rows[drawn[1]]]
        named = zip(("labeled", "pool"), self.sets, rows, strict=False)
        return tuple(
            Part(own, boxes(name, step, images.view_sizes(own)) if boxes else None)
            for name, images, own in named
        )

    def answers(self, drawn: list[Rows]) -> tuple[Tensor, Tensor]:
        """Labels (L,) and pseudo-labels (B-L, K) of what was drawn."""
        labels = torch.from_numpy(self.sets[0].labels[drawn[0]])
        if self._spoken is not None:
            return labels, next(self._spoken)
        stored = None if self._chosen is None else self._chosen.targets
        targets = stored(drawn[1]) if callable(stored) else self._no_targets
        return labels, torch.from_numpy(targets)

    def listen(self, steps: range, workers: int, device: torch.device) -> None:
        """Where a `Speaker` labels the pool images, begin to show it those of each step."""
        chosen = self._chosen
        if chosen is None or not isinstance(chosen.targets, Speaker):
            return
        speaker, stream = chosen.targets, copy(self._streams[1])  # it is not where `draw` is
        drawn = (self._expanded[stream.at(step)] for step in steps)
        requests = ((Part(chosen.rows[at], None),) for at in drawn)
        views = _fetched((self.sets[1],), requests, speaker.resolution, workers, device, cropped=False)
        self._spoken = map(speaker.answer, views)


def clean_batches(
    images: ImageSet,
    rows: Rows,
    *,
    resolution: int,
    batch_size: int,
    device: torch.device,
    workers: int,
    boxes: NDArray[np.float32] | None = None,
) -> Iterator[Tensor]:
    """Views (B, 3, R, R) uint8 of `rows` in order on `device`; the last batch may be short.

    Args:
        images: the set.
        rows: (N,) of it.
        resolution: side R in pixels.
        batch_size: B.
        device: where batches end.
        workers: decoding processes; 0 decodes here.
        boxes: (N, 4) windows, as of `ImageSet.fetch`; None: the clean centre views.

    Raises:
        RunError: an image vanished or changed since the scan, or a worker died.
    """
    ranges = (slice(at, at + batch_size) for at in range(0, len(rows), batch_size))
    parts = ((Part(rows[at], None if boxes is None else boxes[at]),) for at in ranges)
    yield from _fetched((images,), parts, resolution, workers, device, cropped=boxes is not None)


def requested_batches(
    images: ImageSet,
    requests: Iterator[Rows],
    *,
    resolution: int,
    device: torch.device,
    workers: int,
    boxes: Callable[[Rows], NDArray[np.float32] | None] | None = None,
) -> Iterator[Tensor]:
    """As `clean_batches`, for the rows of one batch after the other; `boxes` gives the windows of a batch."""
    parts = ((Part(rows, None if boxes is None else boxes(rows)),) for rows in requests)
    yield from _fetched((images,), parts, resolution, workers, device, cropped=boxes is not None)


class _Fetcher(Dataset[Tensor | RunError]):
    """What a worker holds: the sets; asked for a tuple of parts, it gives their pixels joined."""

    def __init__(self, sets: tuple[ImageSet, ...], resolution: int) -> None:
        self._sets, self._resolution = sets, resolution

    def __getitem__(self, parts: tuple[Part, ...]) -> Tensor | RunError:
        try:
            views = [
                view
                for images, part in zip(self._sets, parts, strict=True)
                for view in images.views(part.rows, self._resolution, part.boxes)
            ]
        except RunError as error:  # handed over whole: the loader would wrap it in a worker's traceback
            return error
        joined: Tensor = default_collate(views)  # in a worker: straight into shared memory
        return joined

    def fetch(self, parts: tuple[Part, ...]) -> Tensor:
        """(B, 3, R, R) uint8, set after set."""
        views = [
            images.fetch(part.rows, self._resolution, part.boxes)
            for images, part in zip(self._sets, parts, strict=True)
        ]
        if len({view.device for view in views}) > 1:
            views = [view.to(max(views, key=lambda v: v.is_cuda).device) for view in views]
        return torch.cat(views) if len(views) > 1 else views[0]


def _fetched(
    sets: tuple[ImageSet, ...],
    requests: Iterator[tuple[Part, ...]],
    resolution: int,
    workers: int,
    device: torch.device,
    cropped: bool,
) -> Iterator[Tensor]:
    """Pixels of each request in order: gathered here, or by workers where each image costs work."""
    fetcher = _Fetcher(sets, resolution)
    if workers == 0 or all(images.direct(resolution, cropped) for images in sets):
        for request in requests:
            yield fetcher.fetch(request).to(device)
        return
    loader = DataLoader(
        fetcher,
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        multiprocessing_context=context(),
        worker_init_fn=quiet_worker,
        pin_memory=device.type == "cuda",
    )
    for images in _alive(loader):
        yield images.to(device, non_blocking=True)


def _alive(loader: DataLoader[Any]) -> Iterator[Tensor]:
    """What the workers give, with their troubles as one line."""
    try:
        for images in loader:
            if isinstance(images, RunError):
                raise images
            yield images
            # torch keeps a note of each batch until there are 128; such crumbs, lying where a model's large
            # temporaries were freed, keep the next ones out, and the process grows by hundreds of megabytes
            shared_cache.free_dead_references()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"a decoding worker died ({reason}); try fewer data.workers, or more shared memory"
        ) from error
