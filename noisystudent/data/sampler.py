"""The order in which images are drawn, as a pure function of (seed, name, step)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.errors import RunError
from noisystudent.runtime import generator

_SMALL_EPOCH, _LARGEST_EPOCH = 2**25, 2**29  # images; their order takes 128 MB and 2 GB


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

    The sequence does not depend on `batch`. A batch larger than n spans several epochs. The permutation of
    the current epoch is kept in memory. `offset` is the place in the sequence where the batch of step 0
    begins; it is not 0 if the batches of earlier steps had another size.
    """

    def __init__(self, n: int, batch: int, seed: int, name: str, offset: int = 0) -> None:
        if n < 1:
            raise RunError(f"the {name} set has no image to draw from; give it images or train without it")
        self._n, self._batch, self._seed, self._name = n, batch, seed, name
        self._offset = offset
        self._epoch, self._order = -1, np.empty(0, np.int32)

    def at(self, step: int) -> NDArray[np.int64]:
        """(batch,) positions offset + step·batch … offset + (step+1)·batch - 1 of the sequence."""
        first = self._offset + step * self._batch
        last = first + self._batch
        pieces = [np.empty(0, np.int32)]
        for epoch in range(first // self._n, -(-last // self._n)):  # all epochs that the batch overlaps
            start = epoch * self._n
            pieces.append(self._permutation(epoch)[max(first - start, 0) : last - start])
        return np.concatenate(pieces).astype(np.int64)

    def _permutation(self, epoch: int) -> NDArray[Any]:
        """(n,) permutation of one epoch. Its generator depends on the epoch, so any step can be the first."""
        if epoch != self._epoch:
            kind = np.int32 if self._n < 2**31 else np.int64  # half the memory for a pool of 100 million
            self._order = np.arange(self._n, dtype=kind)
            generator(self._seed, self._name, epoch).shuffle(self._order)
            self._epoch = epoch
        return self._order
