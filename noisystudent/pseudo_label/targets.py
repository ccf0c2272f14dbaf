"""Pseudo-labels as training targets: the chosen rows' probabilities in one memory-mapped array."""

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
from noisystudent.rundir import atomic


class Targets:
    """Random access to targets that stay on disk; pickles as its path and is opened again.

    The array in the file says by its type what it holds: float16 (n, K) probabilities; int32 (n,) labels,
    served one-hot; or records (classes, probs, tail) of the k largest probabilities and the mass of the rest.
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
        """(b,) positions in the rows of `read_targets` -> (b, K) probabilities, each row summing to 1."""
        stored = self._stored[positions]
        if stored.dtype.names is not None:
            probs = self._spread(stored)
        elif stored.ndim == 1:
            probs = np.zeros((len(stored), self.num_classes), dtype=np.float32)
            probs[np.arange(len(stored)), stored] = 1.0
        else:
            probs = stored.astype(np.float32)
        probs /= probs.sum(axis=1, keepdims=True)  # float16 has lost up to 1e-3 of the mass
        return probs

    def _spread(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """The stored classes' probabilities, and the tail shared evenly by all other classes."""
        others = max(self.num_classes - stored["classes"].shape[1], 1)
        share: NDArray[np.float32] = (stored["tail"] / np.float32(others)).astype(np.float32)
        probs = np.repeat(share[:, None], self.num_classes, axis=1)
        np.put_along_axis(
            probs, stored["classes"].astype(np.int64), stored["probs"].astype(np.float32), axis=1
        )
        return probs


def read_targets(labels: PseudoLabels, rows: NDArray[np.int64], *, hard: bool, out: Path) -> Targets:
    """Gather the targets of some pool rows, in the order given, into the .npy file `out`.

    A soft target takes 2·K bytes on disk up to 256 classes, above that 4·k + 4 (top k, up to 65,536 classes);
    a hard one 4.

    Args:
        labels: what the teacher said.
        rows: (n,) rows of the pool; position i of the result is row `rows[i]`.
        hard: one-hot targets of the most likely class instead of the probabilities.
        out: the file to write, atomically.

    Raises:
        RunError: a row has no pseudo-label.
    """
    order = np.argsort(rows, kind="stable")
    wanted = rows[order]
    files = parts(labels)
    dtype, shape = _layout(files[0][0], labels.num_classes, hard)
    found = np.zeros(len(rows), dtype=bool)
    with atomic(out) as partial:
        stored = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=(len(rows), *shape))
        for path, first, count in files:
            low, high = np.searchsorted(wanted, [first, first + count])
            if low < high:
                stored[order[low:high]] = _read(path, wanted[low:high] - first, dtype)
                found[low:high] = True
        if not found.all():
            raise RunError(
                f"{labels.path} has no label for pool row {wanted[found.argmin()]}; label the pool again"
            )
        stored.flush()
        del stored
    return Targets(out, labels.num_classes)


def _layout(part: Path, num_classes: int, hard: bool) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type of a stored target, and its shape."""
    if hard:
        return np.dtype(np.int32), ()
    schema = pq.read_schema(part)
    if "probs" in schema.names:
        return np.dtype(np.float16), (num_classes,)
    k = schema.field("top_classes").type.list_size
    index = np.min_scalar_type(num_classes - 1)
    return np.dtype([("classes", index, (k,)), ("probs", np.float16, (k,)), ("tail", np.float32)]), ()


def _read(path: Path, local: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Targets of some rows of one part."""
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
