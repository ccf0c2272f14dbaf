"""Run the teacher over the pool, part by part, so that a killed run loses at most the part in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.config import PseudoLabelConfig
from noisystudent.errors import RunError
from noisystudent.pseudo_label.parts import FORMAT, footer, hashes, lists, part_path
from noisystudent.pseudo_label.teacher import Answer, Teacher
from noisystudent.records import PseudoLabels
from noisystudent.rundir import atomic, remove
from noisystudent.runtime import StopFlag

# only labels repeat: dictionaries of the rest would be large, and so would be counts of what is in lists
_ENCODING: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["label"],
    "write_statistics": ["row", "label", "confidence"],
    "column_encoding": {"row": "DELTA_BINARY_PACKED"},
}


Rows = NDArray[np.int64]
Progress = Callable[[int, int], None]


def label_images(
    predict: Callable[[Tensor], Tensor],
    images: Callable[[Iterator[Rows]], Iterator[Tensor]],
    ids: Callable[[Rows], list[str]],
    content_hash: NDArray[np.uint8],
    *,
    num_classes: int,
    config: PseudoLabelConfig,
    out: Path,
    stop: StopFlag,
    progress: Progress = lambda done, total: None,
) -> PseudoLabels:
    """Store softmax(logits / temperature) of every pool image; call again after a stop to go on.

    Part i holds rows i·part_size … of the pool. A whole part of these images is kept, an unreadable or
    foreign one redone, one beyond the pool removed. `config.hard` is for `read_targets`, not for here.

    Args:
        predict: (b, 3, S, S) uint8 -> (b, num_classes) logits, on any device: the EMA weights without noise.
        images: rows of each batch -> its images, one after the other; called once, so that decoding goes on
            from part to part. A batch lies within a part, so batches are the same after a stop.
        ids: rows of the pool -> their names.
        content_hash: (N, 16), one row a pool image.
        num_classes: number of classes, K.
        config: temperature, batch and part size, and how many probabilities are kept above 256 classes.
        out: folder of the parts.
        stop: asked between batches.
        progress: told (images done, N) after every batch.

    Raises:
        RunError: the teacher's logits are not finite or not of K classes, or images are missing.
        Stopped: `stop` was set; all finished parts are on disk.
    """
    teacher = Teacher(predict, num_classes, config.temperature, config.top_k)
    parts, total = _parts(out, config.part_size, content_hash, teacher), len(content_hash)
    _make_room(out, len(parts))
    missing = {part for part in parts if not _is_whole(part)}
    requests = [rows for part in parts if part in missing for rows in _cut(part.rows, config.batch_size)]
    stream = images(map(_rows, requests)) if requests else iter(())
    with ThreadPoolExecutor(1) as thread:
        pen = _Pen(thread)
        for part in parts:
            stop.check()
            if part in missing:
                batches = islice(stream, len(_cut(part.rows, config.batch_size)))
                watched = _watched(batches, part.rows.start, total, stop, progress)
                pen.do(_write, part, _said(teacher, watched, _rows(part.rows), ids), ids)
            progress(part.rows.stop, total)
        pen.rest()
    return PseudoLabels(out, num_classes)


@dataclass(frozen=True, eq=False, slots=True)
class _Part:
    """A file of pseudo-labels, written or not.

    Attributes:
        path: of the file.
        rows: of the pool.
        content_hash: (rows, 16).
        about: the footer it must have.
    """

    path: Path
    rows: range
    content_hash: NDArray[np.uint8]
    about: dict[str, str]


def _parts(out: Path, part_size: int, content_hash: NDArray[np.uint8], teacher: Teacher) -> list[_Part]:
    cuts = _cut(range(len(content_hash)), part_size) or [range(0)]  # an empty pool has one empty part
    return [
        _Part(part_path(out, index), rows, content_hash[rows.start : rows.stop], _footer(rows, teacher))
        for index, rows in enumerate(cuts)
    ]


def _cut(rows: range, size: int) -> list[range]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def _rows(rows: range) -> Rows:
    return np.arange(rows.start, rows.stop, dtype=np.int64)


def _make_room(out: Path, count: int) -> None:
    """A folder with none but the first `count` parts."""
    out.mkdir(parents=True, exist_ok=True)
    for beyond in set(out.glob("part-*.parquet")) - {part_path(out, index) for index in range(count)}:
        remove(beyond)


class _Pen:
    """Does one thing at a time, in a thread, so that the model need not wait for the disk."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._job: Future[None] | None = None

    def do(self, work: Callable[..., None], *given: Any) -> None:
        """Begin, once the thing before is done."""
        self.rest()
        self._job = self._thread.submit(work, *given)

    def rest(self) -> None:
        """Wait, and raise what it raised."""
        if self._job is not None:
            self._job.result()


def _watched(
    batches: Iterator[Tensor],
    done: int,
    total: int,
    stop: StopFlag,
    progress: Progress,
) -> Iterator[Tensor]:
    """The same batches; between two of them a signal is heeded and progress is told."""
    for batch in batches:
        stop.check()
        yield batch
        done += len(batch)
        progress(done, total)


def _said(
    teacher: Teacher,
    batches: Iterator[Tensor],
    rows: Rows,
    ids: Callable[[Rows], list[str]],
) -> pa.Table:
    """What the teacher says of the images of one part."""
    fields = teacher.fields()
    # made whole at the start: small arrays kept from batch to batch would lie between the large ones the
    # teacher frees, and hold their memory
    said = {field.name: _empty(field.type, len(rows)) for field in fields}
    done = 0
    for probs in _answers(teacher, batches):
        here = slice(done, done + len(probs))
        done += len(probs)
        if done > len(rows):
            continue
        bad = np.isnan(probs[:, 0])
        if bad.any():
            first = ids(rows[here][bad][:1])[0]
            raise RunError(
                f"the teacher's logits are not finite for image {first!r}; it has diverged: train it again"
            )
        for name, values in teacher.columns(probs).items():
            said[name][here] = values
    if done != len(rows):
        raise RunError(
            f"{done} images came for the {len(rows)} pool rows from {rows[0]}; the pool has changed"
        )
    columns = [lists(values) if values.ndim == 2 else pa.array(values) for values in said.values()]
    return pa.table(columns, schema=pa.schema(fields))


def _answers(teacher: Teacher, batches: Iterator[Tensor]) -> Iterator[NDArray[np.float32]]:
    """Probabilities batch by batch, each handed out once the next is asked for: no GPU waits for the host."""
    waiting: Answer | None = None
    for batch in batches:
        asked = teacher.ask(batch)
        if waiting is not None:
            yield waiting()
        waiting = asked
    if waiting is not None:
        yield waiting()


def _empty(kind: pa.DataType, rows: int) -> NDArray[Any]:
    """An array of what a column of this type holds: (rows,), or (rows, k) for lists of k."""
    if pa.types.is_fixed_size_list(kind):
        return np.empty((rows, kind.list_size), kind.value_type.to_pandas_dtype())
    return np.empty(rows, kind.to_pandas_dtype())


def _write(part: _Part, said: pa.Table, ids: Callable[[Rows], list[str]]) -> None:
    """Write a part atomically; columns as in `records.PseudoLabels`."""
    rows = _rows(part.rows)
    images = {
        "row": pa.array(rows),
        "id": pa.array(ids(rows), pa.string()),
        "content_hash": hashes(part.content_hash),
    }
    table = pa.table([*images.values(), *said.columns], names=[*images, *said.column_names])
    with atomic(part.path) as partial:
        pq.write_table(table.replace_schema_metadata(part.about), partial, **_ENCODING)
    pa.default_memory_pool().release_unused()  # else the writer's buffers stay beside the next part's


def _footer(part: range, teacher: Teacher) -> dict[str, str]:
    return {
        "format": FORMAT,
        "first_row": str(part.start),
        "rows": str(len(part)),
        "num_classes": str(teacher.num_classes),
        "temperature": repr(teacher.temperature),
        "stored": str(teacher.stored),
    }


def _is_whole(part: _Part) -> bool:
    """Whether the part is there, readable, and of exactly these images and settings."""
    if not part.path.exists():
        return False
    try:
        if footer(part.path) != part.about:
            return False
        with pq.ParquetFile(part.path) as file:
            found = file.read(columns=["content_hash"]).column(0)
    except (RunError, OSError, pa.ArrowException):
        return False  # half a file, or another program's: the part is redone
    return bool(found.equals(pa.chunked_array([hashes(part.content_hash)])))
