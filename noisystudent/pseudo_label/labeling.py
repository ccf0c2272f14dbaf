"""Run the teacher over the pool, part by part, so that a killed run loses at most the part in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.config import PseudoLabelConfig
from noisystudent.errors import RunError
from noisystudent.pseudo_label.parts import DENSE_CLASSES, FORMAT, footer, hashes, lists, part_path
from noisystudent.records import PseudoLabels
from noisystudent.rundir import atomic, remove
from noisystudent.runtime import StopFlag

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Teacher:
    """What is asked of a batch of images, and how much of the answer is stored."""

    predict: Callable[[Tensor], Tensor]
    num_classes: int
    temperature: float
    stored: int

    def __call__(self, images: Tensor, ids: list[str]) -> Columns:
        """(b, 3, S, S) uint8 -> the columns of a part that the teacher decides, b rows each."""
        with torch.inference_mode():
            logits = self.predict(images).float()
            self._check(logits, ids)
            probs = torch.softmax(logits / self.temperature, dim=1)
            # stable: of equal probabilities the lowest class comes first, on every device
            ordered, classes = torch.sort(probs, dim=1, descending=True, stable=True)
        columns = {"label": classes[:, 0].int(), "confidence": ordered[:, 0]}
        if self.num_classes <= DENSE_CLASSES:
            columns["probs"] = probs.half()
        else:
            columns["top_classes"] = classes[:, : self.stored].int()
            columns["top_probs"] = ordered[:, : self.stored].half()
            columns["tail"] = ordered[:, self.stored :].sum(dim=1)
        return {name: values.cpu().numpy() for name, values in columns.items()}

    def _check(self, logits: Tensor, ids: list[str]) -> None:
        if logits.shape != (len(ids), self.num_classes):
            shape = tuple(logits.shape)
            raise RunError(
                f"the teacher's logits are {shape}, not {(len(ids), self.num_classes)}; is it another run's?"
            )
        finite = torch.isfinite(logits).all(dim=1)
        if not bool(finite.all()):
            first = ids[int((~finite).int().cpu().numpy().argmax())]
            raise RunError(
                f"the teacher's logits are not finite for image {first!r}; it has diverged: train it again"
            )


def label_images(
    predict: Callable[[Tensor], Tensor],
    images: Callable[[NDArray[np.int64]], Iterator[Tensor]],
    ids: Callable[[NDArray[np.int64]], list[str]],
    content_hash: NDArray[np.uint8],
    *,
    num_classes: int,
    config: PseudoLabelConfig,
    out: Path,
    stop: StopFlag,
    progress: Callable[[int, int], None] | None = None,
) -> PseudoLabels:
    """Store softmax(logits / temperature) of every pool image; call again after a stop to go on.

    Part i holds rows i·part_size … of the pool. A whole part of these images is kept, an unreadable or
    foreign one redone, one beyond the pool removed. `config.hard` is for `read_targets`, not for here.

    Args:
        predict: (b, 3, S, S) uint8 -> (b, num_classes) logits, on any device: the EMA weights without noise.
        images: rows of the pool -> their images, in that order, in batches of any size.
        ids: rows of the pool -> their names.
        content_hash: (N, 16), one row a pool image.
        num_classes: number of classes, K.
        config: temperature, part size and how many probabilities are kept above 256 classes.
        out: folder of the parts.
        stop: asked between batches.
        progress: told (images done, N) after every batch.

    Raises:
        RunError: the teacher's logits are not finite or not of K classes, or images are missing.
        Stopped: `stop` was set; all finished parts are on disk.
    """
    stored = num_classes if num_classes <= DENSE_CLASSES else min(config.top_k, num_classes)
    teacher = _Teacher(predict, num_classes, config.temperature, stored)
    total = len(content_hash)
    starts = range(0, max(total, 1), config.part_size)  # an empty pool has one empty part
    out.mkdir(parents=True, exist_ok=True)
    for stale in set(out.glob("part-*.parquet")) - {part_path(out, i) for i in range(len(starts))}:
        remove(stale)
    for index, first in enumerate(starts):
        stop.check()
        rows = np.arange(first, min(first + config.part_size, total), dtype=np.int64)
        about = _footer(first, len(rows), teacher)
        if not _is_whole(part_path(out, index), about, content_hash[rows]):
            batches = _watched(images(rows) if len(rows) else iter(()), first, total, stop, progress)
            table = _label_part(teacher, batches, rows, ids(rows), content_hash[rows])
            _write_part(part_path(out, index), table, about)
        if progress is not None:
            progress(first + len(rows), total)
    return PseudoLabels(out, num_classes)


def _watched(
    batches: Iterator[Tensor],
    done: int,
    total: int,
    stop: StopFlag,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Tensor]:
    """The same batches; between two of them a signal is heeded and progress is told."""
    for batch in batches:
        stop.check()
        yield batch
        done += len(batch)
        if progress is not None:
            progress(done, total)


def _label_part(
    teacher: _Teacher,
    batches: Iterator[Tensor],
    rows: NDArray[np.int64],
    ids: list[str],
    content_hash: NDArray[np.uint8],
) -> pa.Table:
    """The table of one part; columns as in `records.PseudoLabels`."""
    schema = _schema(teacher)
    columns = {"row": pa.array(rows), "id": pa.array(ids, pa.string()), "content_hash": hashes(content_hash)}
    # made whole at the start: small arrays kept from batch to batch would lie between the large ones the
    # teacher frees, and hold their memory
    said = {name: _empty(schema.field(name).type, len(rows)) for name in schema.names[len(columns) :]}
    done = 0
    for batch in batches:
        if done + len(batch) <= len(rows):
            for name, values in teacher(batch, ids[done : done + len(batch)]).items():
                said[name][done : done + len(batch)] = values
        done += len(batch)
    if done != len(rows):
        raise RunError(
            f"{done} images came for the {len(rows)} pool rows from {rows[0]}; the pool has changed"
        )
    columns |= {name: lists(v) if v.ndim == 2 else pa.array(v) for name, v in said.items()}
    return pa.table(columns, schema=schema)


def _empty(kind: pa.DataType, rows: int) -> NDArray[Any]:
    """An array of what a column of this type holds: (rows,), or (rows, k) for lists of k."""
    if pa.types.is_fixed_size_list(kind):
        return np.empty((rows, kind.list_size), kind.value_type.to_pandas_dtype())
    return np.empty(rows, kind.to_pandas_dtype())


def _write_part(path: Path, table: pa.Table, about: dict[str, str]) -> None:
    """Write one part atomically; only labels repeat, and dictionaries of the rest would be large."""
    with atomic(path) as partial:
        pq.write_table(
            table.replace_schema_metadata(about), partial, compression="zstd", use_dictionary=["label"]
        )
    pa.default_memory_pool().release_unused()  # else the writer's buffers stay beside the next part's


def _schema(teacher: _Teacher) -> pa.Schema:
    fields = [("row", pa.int64()), ("id", pa.string()), ("content_hash", pa.binary(16))]
    fields += [("label", pa.int32()), ("confidence", pa.float32())]
    if teacher.num_classes <= DENSE_CLASSES:
        return pa.schema([*fields, ("probs", pa.list_(pa.float16(), teacher.num_classes))])
    top = [
        ("top_classes", pa.list_(pa.int32(), teacher.stored)),
        ("top_probs", pa.list_(pa.float16(), teacher.stored)),
    ]
    return pa.schema([*fields, *top, ("tail", pa.float32())])


def _footer(first_row: int, rows: int, teacher: _Teacher) -> dict[str, str]:
    return {
        "format": FORMAT,
        "first_row": str(first_row),
        "rows": str(rows),
        "num_classes": str(teacher.num_classes),
        "temperature": repr(teacher.temperature),
        "stored": str(teacher.stored),
    }


def _is_whole(path: Path, about: dict[str, str], content_hash: NDArray[np.uint8]) -> bool:
    """Whether the part is there, readable, and of exactly these images and settings."""
    if not path.exists():
        return False
    try:
        if footer(path) != about:
            return False
        with pq.ParquetFile(path) as file:
            found = file.read(columns=["content_hash"]).column(0)
    except (RunError, OSError, pa.ArrowException):
        return False  # half a file, or another program's: the part is redone
    return bool(found.equals(pa.chunked_array([hashes(content_hash)])))
