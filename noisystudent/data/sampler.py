"""The order in which images are drawn, as a pure function of (seed, name, step)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.errors import RunError
from noisystudent.runtime import generator


class Sampler:
    """An endless sequence of positions, in which epoch e is a random permutation of 0 … n-1.

    The sequence does not depend on `batch`. A batch larger than n spans several epochs. The permutation of
    the current epoch is kept in memory.
    """

    def __init__(self, n: int, batch: int, seed: int, name: str) -> None:
        if n < 1:
            raise RunError(f"the {name} set has no image to draw from; give it images or train without it")
        self._n, self._batch, self._seed, self._name = n, batch, seed, name
        self._epoch, self._order = -1, np.empty(0, np.int32)

    def at(self, step: int) -> NDArray[np.int64]:
        """(batch,) positions step·batch … (step+1)·batch - 1 of the sequence."""
        first, last = step * self._batch, (step + 1) * self._batch
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
