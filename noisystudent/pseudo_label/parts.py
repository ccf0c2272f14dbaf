"""Read and describe pseudo-labels on disk: Parquet parts, each with a range of pool rows and a footer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisystudent.errors import RunError
from noisystudent.records import PseudoLabels
from noisystudent.run.checksums import problems
from noisystudent.run.part_index import PartIndex, read_joined
from noisystudent.run.rundir import LABELS_FORMAT, LabelsDir

DENSE_CLASSES = 256
"""Up to this number of classes, all probabilities of an image are stored."""
HISTOGRAM_BINS = 20


def footer(path: Path) -> dict[str, str]:
    """Read the footer of a part.

    Raises:
        RunError: the file cannot be read, or it is not a part of pseudo-labels.
    """
    try:
        raw = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path} is not a readable Parquet file; label the pool again") from error
    content = {key.decode(): value.decode() for key, value in raw.items() if key != b"ARROW:schema"}
    if content.get("format") != LABELS_FORMAT:
        raise RunError(f"{path} is not a part of pseudo-labels ({LABELS_FORMAT}); label the pool again")
    return content


def parts(labels: PseudoLabels) -> list[tuple[Path, int, int]]:
    """(path, first row, number of rows) of every part, in row order.

    Raises:
        RunError: there are no parts, a file is not a part, or a part is missing.
    """
    folder = LabelsDir(labels.path)
    files = []
    for path in folder.parts():
        about = footer(path)
        files.append((path, int(about["first_row"]), int(about["rows"])))
    if not files:
        raise RunError(f"{labels.path} holds no pseudo-labels; label the pool first")
    files.sort(key=lambda part: part[1])
    done = 0
    for path, first, count in files:
        if first != done:
            raise RunError(f"{path} begins at pool row {first}, not {done}; label the pool again")
        done += count
    total = read_index(folder).about.get("rows")
    if total is not None and done != total:
        raise RunError(f"{labels.path} has labels of {done:,} of {total:,} images; label the pool again")
    return files


def read_index(folder: LabelsDir) -> PartIndex:
    """Read parts.json, and those of other processes; without a readable one no part is known.

    A part that is not in it may be incomplete: it is labelled again. `PartIndex.about` has `rows`, the number
    of pool rows.
    """
    return read_joined(folder, check_about)


def check_about(about: Mapping[str, Any]) -> None:
    """Raise KeyError, TypeError or ValueError unless an index is of pseudo-labels."""
    int(about["rows"])


def check_parts(labels: PseudoLabels) -> None:
    """Compare every part with its checksum.

    Raises:
        RunError: a part is missing or damaged, or parts.json is.
    """
    folder = LabelsDir(labels.path)
    index = read_index(folder)
    if not index.about:
        raise RunError(f"{folder.index} is missing or damaged; label the pool again")
    for path, problem in problems(folder.path, index.files, contents=True).items():
        raise RunError(f"{path} {problem}; label the pool again")
    parts(labels)


def hashes(content_hash: NDArray[np.uint8]) -> pa.Array:
    """Convert hashes (n, 16) uint8 to an Arrow column of binary(16)."""
    buffer = pa.py_buffer(np.ascontiguousarray(content_hash))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(content_hash), [None, buffer])


def lists(values: NDArray[Any]) -> pa.Array:
    """Convert an array (n, k) to an Arrow column of fixed-size lists of k."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def unlist(column: pa.ChunkedArray) -> NDArray[Any]:
    """Convert an Arrow column of fixed-size lists of k to an array (n, k)."""
    array = column.combine_chunks()
    values: NDArray[Any] = array.flatten().to_numpy()
    return values.reshape(len(array), array.type.list_size)


def iterate(
    labels: PseudoLabels, columns: Sequence[str], batch_rows: int = 65_536
) -> Iterator[pa.RecordBatch]:
    """Read some columns (see `records.PseudoLabels`) in row order, at most `batch_rows` rows at a time."""
    for path, _, _ in parts(labels):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=batch_rows, columns=list(columns))


def has_agreement(labels: PseudoLabels) -> bool:
    """Return True if the pseudo-labels are of several teachers, and have the column `agreement`."""
    return all("agreement" in pq.read_schema(path).names for path, _, _ in parts(labels))


def summary(
    labels: PseudoLabels, *, truth: NDArray[np.int64] | None = None, kept: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Summarise pseudo-labels. They are read in batches.

    Args:
        labels: the pseudo-labels.
        truth: (N,) true class of each pool row, -1 if unknown. It is used for the accuracy only.
        kept: (n,) pool rows that were selected.

    Returns:
        images: number of pool images.
        mean_confidence: their mean confidence. A mean over no images is None, here and below.
        confidence_histogram: `edges` of 20 equal bins, `counts`, and `kept` with the counts of the kept rows.
        per_class: number of images for each predicted class.
        accuracy: accuracy of the rows whose true class is known, if `truth` is given.
        kept_accuracy: the same for the kept rows, if both are given.
        agreement: of several teachers, see `_agreement`.
    """
    edges = np.linspace(0.0, 1.0, HISTOGRAM_BINS + 1)
    histograms = np.zeros((2, HISTOGRAM_BINS), dtype=np.int64)  # all rows, kept rows
    scores = np.zeros((2, 2), dtype=np.int64)  # (all rows, kept rows) x (true class known, label correct)
    per_class = np.zeros(labels.num_classes, dtype=np.int64)
    chosen = np.sort(kept) if kept is not None else np.empty(0, dtype=np.int64)
    total = 0.0
    for batch in iterate(labels, ["row", "label", "confidence"]):
        row, label = batch["row"].to_numpy(), batch["label"].to_numpy()
        confidence = batch["confidence"].to_numpy().astype(np.float64)
        per_class += np.bincount(label, minlength=labels.num_classes)
        total += float(confidence.sum())
        for index, mask in enumerate((np.ones(len(row), dtype=bool), _among(row, chosen))):
            histograms[index] += np.histogram(confidence[mask], edges)[0]
            if truth is not None:
                actual = truth[row[mask]]
                scores[index] += (actual >= 0).sum(), (actual == label[mask]).sum()
    images, histogram = int(per_class.sum()), {"edges": edges.tolist(), "counts": histograms[0].tolist()}
    result: dict[str, Any] = {
        "images": images,
        "mean_confidence": total / images if images else None,
        "confidence_histogram": histogram,
        "per_class": per_class.tolist(),
    }
    if images and has_agreement(labels):
        result["agreement"] = _agreement(labels, chosen)
    if truth is not None:
        result["accuracy"] = _share(*scores[0])
    if kept is not None:
        histogram["kept"] = histograms[1].tolist()
        result |= {} if truth is None else {"kept_accuracy": _share(*scores[1])}
    return result


def _agreement(labels: PseudoLabels, chosen: NDArray[np.int64]) -> dict[str, Any]:
    """Return `mean`, and `shares`: [agreement, images, kept images] of each value, in rising order."""
    of_all, of_kept = Counter[float](), Counter[float]()
    for batch in iterate(labels, ["row", "agreement"]):
        values = batch["agreement"].to_numpy()
        of_all.update(values.tolist())
        of_kept.update(values[_among(batch["row"].to_numpy(), chosen)].tolist())
    mean = math.fsum(value * count for value, count in of_all.items()) / of_all.total()
    return {"mean": mean, "shares": [[value, of_all[value], of_kept[value]] for value in sorted(of_all)]}


def _among(rows: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) True for each row that is in `chosen`, which is ascending.

    The memory needed depends on the number of rows only. `np.isin` would need memory for all of `chosen`.
    """
    after = np.searchsorted(chosen, rows, side="right")
    return np.asarray(after > np.searchsorted(chosen, rows, side="left"), np.bool_)


def _share(known: np.int64, correct: np.int64) -> float | None:
    """correct / known; None if nothing is known."""
    return float(correct / known) if known else None
