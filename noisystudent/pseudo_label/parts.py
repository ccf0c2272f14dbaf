"""How pseudo-labels lie on disk: Parquet parts, each a range of the pool's rows, described in its footer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisystudent.errors import RunError
from noisystudent.records import PseudoLabels

FORMAT = "noisystudent.pseudo_labels/1"
DENSE_CLASSES = 256
"""Up to this many classes every probability is stored."""
HISTOGRAM_BINS = 20


def part_path(folder: Path, index: int) -> Path:
    """Where part `index` lies."""
    return folder / f"part-{index:05d}.parquet"


def footer(path: Path) -> dict[str, str]:
    """What a part says about itself.

    Raises:
        RunError: it is no part: unreadable, or without our footer.
    """
    try:
        raw = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path} is not a readable Parquet file; delete it and run again") from error
    content = {key.decode(): value.decode() for key, value in raw.items() if key != b"ARROW:schema"}
    if content.get("format") != FORMAT:
        raise RunError(f"{path} is not a part of pseudo-labels ({FORMAT}); move it elsewhere and run again")
    return content


def parts(labels: PseudoLabels) -> list[tuple[Path, int, int]]:
    """(path, first row, number of rows) of every part, in row order whatever the files are called.

    Raises:
        RunError: there is none, or one is not a part.
    """
    found = []
    for path in labels.path.glob("*.parquet"):
        about = footer(path)
        found.append((path, int(about["first_row"]), int(about["rows"])))
    if not found:
        raise RunError(f"{labels.path} holds no pseudo-labels; label the pool first")
    return sorted(found, key=lambda part: part[1])


def hashes(content_hash: NDArray[np.uint8]) -> pa.Array:
    """(n, 16) uint8 as an Arrow column of binary(16)."""
    buffer = pa.py_buffer(np.ascontiguousarray(content_hash))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(content_hash), [None, buffer])


def lists(values: NDArray[Any]) -> pa.Array:
    """(n, k) as an Arrow column of fixed-size lists of k."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def unlist(column: pa.ChunkedArray) -> NDArray[Any]:
    """The inverse of `lists`."""
    array = column.combine_chunks()
    values: NDArray[Any] = array.flatten().to_numpy()
    return values.reshape(len(array), array.type.list_size)


def iterate(
    labels: PseudoLabels, columns: Sequence[str], batch_rows: int = 65_536
) -> Iterator[pa.RecordBatch]:
    """Stream some columns (see `records.PseudoLabels`) in row order, at most `batch_rows` at a time."""
    for path, _, _ in parts(labels):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=batch_rows, columns=list(columns))


def summary(
    labels: PseudoLabels, *, truth: NDArray[np.int64] | None = None, kept: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """What the teacher said, in numbers; one streaming pass.

    Args:
        labels: what to describe.
        truth: (N,) hidden class of each pool row, -1 where unknown; used to score, nothing else.
        kept: (n,) rows that were selected, to be described apart.

    Returns:
        images; mean_confidence; confidence_histogram: edges of 20 equal bins, counts, and if given
        kept, the counts of those; per_class, images by predicted class; with a truth, accuracy over the rows
        whose truth is known, and kept_accuracy. A mean over no image is None.
    """
    edges = np.linspace(0.0, 1.0, HISTOGRAM_BINS + 1)
    histograms = np.zeros((2, HISTOGRAM_BINS), dtype=np.int64)  # of all, of the kept
    scores = np.zeros((2, 2), dtype=np.int64)  # (all, kept) x (known, correct)
    per_class = np.zeros(labels.num_classes, dtype=np.int64)
    chosen = np.sort(kept) if kept is not None else np.empty(0, dtype=np.int64)
    total = 0.0
    for batch in iterate(labels, ["row", "label", "confidence"]):
        row, label = batch["row"].to_numpy(), batch["label"].to_numpy()
        confidence = batch["confidence"].to_numpy().astype(np.float64)
        per_class += np.bincount(label, minlength=labels.num_classes)
        total += float(confidence.sum())
        for index, of in enumerate((np.ones(len(row), dtype=bool), _among(row, chosen))):
            histograms[index] += np.histogram(confidence[of], edges)[0]
            if truth is not None:
                actual = truth[row[of]]
                scores[index] += (actual >= 0).sum(), (actual == label[of]).sum()
    images = int(per_class.sum())
    histogram = {"edges": edges.tolist(), "counts": histograms[0].tolist()}
    result: dict[str, Any] = {
        "images": images,
        "mean_confidence": total / images if images else None,
        "confidence_histogram": histogram,
        "per_class": per_class.tolist(),
    }
    if kept is not None:
        histogram["kept"] = histograms[1].tolist()
    if truth is not None:
        result["accuracy"] = _share(*scores[0])
        if kept is not None:
            result["kept_accuracy"] = _share(*scores[1])
    return result


def _among(rows: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) which rows are in the ascending `chosen`; works in the rows' size, whatever that of `chosen`."""
    after = np.searchsorted(chosen, rows, side="right")
    return np.asarray(after > np.searchsorted(chosen, rows, side="left"), np.bool_)


def _share(known: np.int64, correct: np.int64) -> float | None:
    return float(correct / known) if known else None
