"""The order in which images are drawn, as a pure function of (seed, name, step)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.errors import RunError
from noisystudent.runtime import generator

_SMALL_EPOCH, _LARGEST_EPOCH = 2**25, 2**29  # images; their order takes 128 MB and 2 GB
_BLOCK = 256  # neighbours that stay together; as files of 50 kB they are two requests to a store


class Repeated:
    """Positions 0 … n-1, each repeated `repeats` times in a row, as one long sequence that is never stored.

    Args:
        repeats: (n,) how often each position occurs.
    """

    def __init__(self, repeats: NDArray[np.int32]) -> None:
        total = int(repeats.sum(dtype=np.int64))
        # half the memory for a pool of 100 million
        self._ends = np.cumsum(repeats, dtype=np.uint32 if total < 2**32 else np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """(b,) positions at some places (b,) of the sequence."""
        # of the same type, because numpy would otherwise convert the whole array of ends
        return np.searchsorted(self._ends, places.astype(self._ends.dtype), side="right")


def shown(repeats: NDArray[np.int32], draws: int) -> NDArray[np.int32]:
    """Fewer repeats in the same proportion, if an epoch has far more images than a training draws.

    The order of an epoch is kept in memory. Nothing changes up to 33 million images, or as many as are drawn.

    Args:
        repeats: (n,) how often each image occurs in an epoch.
        draws: number of images that the training draws.

    Returns:
        (n,) repeats; 0 stays 0, and any other number is at least 1.
    """
    total, most = int(repeats.sum(dtype=np.int64)), min(max(draws, _SMALL_EPOCH), _LARGEST_EPOCH)
    if total <= most:
        return repeats
    return np.where(repeats > 0, np.maximum(repeats // -(-total // most), 1), 0).astype(np.int32)


class Sampler:
    """An endless sequence of positions, in which epoch e is a random permutation of 0 … n-1.

    The sequence does not depend on `batch`. A batch larger than n spans several epochs.

    An epoch is made of windows, and any of them can be the first that is drawn. Without `window` it is one
    window, a uniform permutation. With it, blocks of 256 neighbours are shuffled, and every `window` images
    of that sequence among themselves: neighbours are drawn close together, and no order of all images is in
    memory.

    Args:
        n: number of images.
        batch: images of a step.
        seed, name: what the sequence depends on.
        offset: place in the sequence where the batch of step 0 begins; it is not 0 if the batches of earlier
            steps had another size.
        window: images that are shuffled among themselves. None: all.

    Raises:
        RunError: n is 0.
    """

    def __init__(
        self, n: int, batch: int, seed: int, name: str, offset: int = 0, *, window: int | None = None
    ) -> None:
        if n < 1:
            raise RunError(f"the {name} set has no image to draw from; give it images or train without it")
        self._n, self._batch, self._seed, self._name = n, batch, seed, name
        self._offset, self._blocks = offset, window is not None and window < n
        self._size = window if window is not None and window < n else n
        self._windows = -(-n // self._size)  # of an epoch; the last one may be smaller
        self._drawn: dict[int, NDArray[Any]] = {}  # the last two windows, by their number in the sequence
        self._order = (-1, np.empty(0, np.int64), np.empty(0, np.int64))

    def at(self, step: int) -> NDArray[np.int64]:
        """(batch,) positions offset + step·batch … offset + (step+1)·batch - 1 of the sequence."""
        pieces = [self._window(number)[part] for number, part in self._parts(step)]
        return np.concatenate([np.empty(0, np.int32), *pieces]).astype(np.int64)

    def ahead(self, step: int, rows: slice) -> NDArray[np.int64]:
        """Positions of the next window that a machine should fetch in this step; none without windows.

        All steps of a window together have all that the machine draws in the next one. Each has neighbours.
        They ascend, from a place that differs between machines: machines that share a cache find in it what
        another has fetched, and do not fetch the same at the same time.

        Args:
            step: the step.
            rows: the rows of each batch that the machine draws.
        """
        pieces = [np.empty(0, np.int64)]
        for number, part in self._parts(step) if self._blocks else ():
            last = part.stop == len(self._window(number))
            drawn = self._window(number + 1)
            own = np.sort(drawn[self._drawn_in(number + 1, rows)])
            own = np.roll(own, -(rows.start * len(own) // self._batch))
            start, stop = (at * len(own) // len(drawn) for at in (part.start, part.stop))
            pieces.append(own[start : None if last else stop])
        return np.concatenate(pieces).astype(np.int64)

    def _parts(self, step: int) -> Iterator[tuple[int, slice]]:
        """The windows that a batch overlaps, by their number in the sequence, and the part of each."""
        first = self._offset + step * self._batch
        at, last = first, first + self._batch
        while at < last:
            epoch, inside = divmod(at, self._n)
            number, start = divmod(inside, self._size)
            end = min(self._size, self._n - number * self._size, start + last - at)
            yield epoch * self._windows + number, slice(start, end)
            at += end - start

    def _drawn_in(self, number: int, rows: slice) -> NDArray[np.int64]:
        """Places in a window that are drawn in some rows of a batch."""
        epoch, inside = divmod(number, self._windows)
        first = epoch * self._n + inside * self._size - self._offset
        row = (first + np.arange(len(self._window(number)))) % self._batch
        return np.flatnonzero((rows.start <= row) & (row < rows.stop))

    def _window(self, number: int) -> NDArray[Any]:
        """Positions of one window. Its generator depends on its number, so any step can be the first."""
        if number not in self._drawn:
            epoch, inside = divmod(number, self._windows)
            kind = np.int32 if self._n < 2**31 else np.int64  # half the memory for a pool of 100 million
            if self._blocks:
                drawn = self._neighbours(epoch, inside).astype(kind)
                kept, counters = list(self._drawn.items())[-1:], [epoch, inside]
            else:  # no other epoch is kept: it may take gigabytes
                drawn, kept, counters = np.arange(self._n, dtype=kind), [], [epoch]
            generator(self._seed, self._name, *counters).shuffle(drawn)
            self._drawn = dict([*kept, (number, drawn)])
        return self._drawn[number]

    def _neighbours(self, epoch: int, window: int) -> NDArray[np.int64]:
        """Positions of one window, before it is shuffled, in blocks whose order is that of the epoch."""
        if self._order[0] != epoch:
            blocks = np.arange(-(-self._n // _BLOCK))
            generator(self._seed, f"{self._name}/blocks", epoch).shuffle(blocks)
            lengths = np.minimum(_BLOCK, self._n - blocks * _BLOCK)
            self._order = epoch, blocks, np.cumsum(lengths) - lengths
        _, blocks, starts = self._order
        places = np.arange(window * self._size, min((window + 1) * self._size, self._n))
        block = np.searchsorted(starts, places, side="right") - 1
        return np.asarray(blocks[block] * _BLOCK + places - starts[block], np.int64)
