"""Gather the pseudo-labels of the selected pool rows as training targets in one memory-mapped array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisystudent.errors import RunError
from noisystudent.pseudo_label.parts import parts, unlist
from noisystudent.records import PseudoLabels
from noisystudent.run.files import atomic, new_array


class Targets:
    """Random access to training targets in a memory-mapped .npy file.

    The array has one of three types: float16 (n, K) probabilities; int32 (n,) labels, which are returned as
    one-hot rows; or (n,) records (classes, probs, tail) with the k largest probabilities and the sum of the
    others. Pickling stores only the path, so that a worker process opens the file again.
    """

    def __init__(self, path: Path, num_classes: int) -> None:
        self.path = path
        self.num_classes = num_classes
        self._stored: NDArray[Any] = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._stored)

    def __reduce__(self) -> tuple[type[Targets], tuple[Path, int]]:
        return Targets, (self.path, self.num_classes)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Targets of some positions in the rows that were given to `read_targets`.

        Args:
            positions: (b,) positions.

        Returns:
            (b, K) float32 probabilities. Each row sums to 1.
        """
        stored = self._stored[positions]
        if stored.dtype.names is not None:
            probs = self._spread(stored)
        elif stored.ndim == 1:
            probs = np.zeros((len(stored), self.num_classes), dtype=np.float32)
            probs[np.arange(len(stored)), stored] = 1.0
        else:
            probs = stored.astype(np.float32)
        probs /= probs.sum(axis=1, keepdims=True)  # rounding to float16 changes the sum by up to 1e-3
        return probs

    def _spread(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """(b, K) the stored probabilities, with the tail shared evenly among all other classes."""
        others = max(self.num_classes - stored["classes"].shape[1], 1)
        share: NDArray[np.float32] = (stored["tail"] / np.float32(others)).astype(np.float32)
        probs = np.repeat(share[:, None], self.num_classes, axis=1)
        np.put_along_axis(
            probs, stored["classes"].astype(np.int64), stored["probs"].astype(np.float32), axis=1
        )
        return probs


def read_targets(labels: PseudoLabels, rows: NDArray[np.int64], *, hard: bool, out: Path) -> Targets:
    """Write the targets of some pool rows, in the given order, to the .npy file `out`.

    Size of a target on disk: 4 bytes if hard. If soft, 2 K bytes for K up to 256 classes, and 4 k + 4 bytes
    for the top k of up to 65,536 classes.

    Args:
        labels: pseudo-labels of the teacher.
        rows: (n,) pool rows. Position i of the result is row `rows[i]`.
        hard: True for one-hot targets of the most likely class instead of probabilities.
        out: file to write, atomically.

    Returns:
        The targets in the file `out`.

    Raises:
        RunError: a row has no pseudo-label.
    """
    # In ascending order, the rows of each part are one slice.
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    files = parts(labels)
    dtype, shape = _layout(files[0][0], labels.num_classes, hard)
    labeled = np.zeros(len(rows), dtype=bool)
    with atomic(out) as partial:
        stored = new_array(partial, dtype, (len(rows), *shape))
        for path, first, count in files:
            low, high = np.searchsorted(ascending, [first, first + count])
            if low < high:
                stored[order[low:high]] = _read(path, ascending[low:high] - first, dtype)
                labeled[low:high] = True
        if not labeled.all():
            raise RunError(
                f"{labels.path} has no label for pool row {ascending[labeled.argmin()]}; label the pool again"
            )
        stored.flush()
        del stored  # unmaps the file before it is renamed
    return Targets(out, labels.num_classes)


def _layout(part: Path, num_classes: int, hard: bool) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of one stored target."""
    if hard:
        return np.dtype(np.int32), ()
    schema = pq.read_schema(part)
    if "probs" in schema.names:
        return np.dtype(np.float16), (num_classes,)
    k = schema.field("top_classes").type.list_size
    index = np.min_scalar_type(num_classes - 1)
    return np.dtype([("classes", index, (k,)), ("probs", np.float16, (k,)), ("tail", np.float32)]), ()


def _read(path: Path, local: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Targets of some rows of one part; `local` counts from the first row of the part."""
    if dtype.names is None:
        name = "label" if dtype == np.int32 else "probs"
        column = _columns(path, [name])[name]
        values: NDArray[Any] = column.to_numpy() if name == "label" else unlist(column)
        return values[local]
    table = _columns(path, ["top_classes", "top_probs", "tail"])
    records = np.empty(len(local), dtype=dtype)
    records["classes"] = unlist(table["top_classes"])[local]
    records["probs"] = unlist(table["top_probs"])[local]
    records["tail"] = table["tail"].to_numpy()[local]
    return records


def _columns(path: Path, names: list[str]) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read(columns=names)
