"""Label the pool with the teacher in parts; a killed run loses at most the part being computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.config import PseudoLabelConfig
from noisystudent.console import Progress
from noisystudent.distributed import group
from noisystudent.errors import RunError
from noisystudent.pseudo_label.encode import Encoder, Images
from noisystudent.pseudo_label.parts import hashes, lists
from noisystudent.pseudo_label.resume import Part, resume
from noisystudent.records import PseudoLabels, Vote
from noisystudent.run.checksums import checksum
from noisystudent.run.files import atomic
from noisystudent.run.part_index import PartIndex
from noisystudent.run.rundir import LABELS_FORMAT, LabelsDir
from noisystudent.runtime import on_host

# A dictionary saves space only for labels, which repeat. Statistics of lists of probabilities would be large.
_ENCODING: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["label"],
    "write_statistics": ["row", "label", "confidence"],
    "column_encoding": {"row": "DELTA_BINARY_PACKED"},
}

Rows = NDArray[np.int64]


def label_images(
    prepare: Callable[[int, int], tuple[Callable[[Images], Tensor | Vote], int]],
    images: Callable[[Iterator[Rows]], Iterator[Images]],
    ids: Callable[[Rows], list[str]],
    content_hash: NDArray[np.uint8],
    *,
    num_classes: int,
    config: PseudoLabelConfig,
    out: Path,
    task: str,
    progress: Progress,
    voters: int = 1,
) -> PseudoLabels:
    """Store softmax(logits / temperature) of every pool image. A second call after a stop continues.

    Each part has `part_size` pool rows, rounded up to whole batches. Complete parts of the same images and
    settings are kept, others are made again or removed. All processes of a run share the parts out; a part
    has the same bytes whoever makes it. `config.hard` has no effect; see `read_targets`.

    Args:
        prepare: (number of images of all processes, largest batch size) -> the teacher, and its batch size.
        images: pool rows of each batch -> images of each batch; called once, for all parts.
        ids: pool rows -> names of the images.
        content_hash: (N, 16) uint8, one row for each pool image.
        num_classes, voters: number of classes, K, and of teachers.
        config: temperature, batch size, part size, and the number of probabilities stored above 256 classes.
        out: folder of the parts.
        task, progress: name of this work and its display. A signal stops the work between two batches.

    Raises:
        RunError: the teacher's logits are not finite or do not have K classes, or images are missing.
        Stopped: a signal came. All finished parts are on disk.
    """
    encoder = Encoder(num_classes, config.temperature, config.top_k, voters)
    parts, total = _parts(LabelsDir(out), config, content_hash, encoder), len(content_hash)
    known = group().lead(partial(resume, LabelsDir(out), parts, task, progress))
    todo = [part for part in parts if part.path.name not in known.files]
    predict, batch_size = prepare(sum(len(part.rows) for part in todo), len(parts[0].rows))
    missing, index = group().own(todo), known.own()
    requests = [rows for part in missing for rows in _split(part.rows, batch_size)]
    stream = images(map(_array, requests)) if requests else iter(())
    with _Writer() as writer:
        for part in parts:
            if part in missing:
                batches = islice(stream, len(_split(part.rows, batch_size)))
                watched = _watched(batches, part.rows.start, total, task, progress)
                writer.submit(_write, part, _encoded(encoder, predict, watched, part.rows, ids), ids, index)
            progress.advance(task, part.rows.stop, total)
    index.join()
    return PseudoLabels(out, num_classes)


def _parts(
    folder: LabelsDir, config: PseudoLabelConfig, content_hash: NDArray[np.uint8], encoder: Encoder
) -> list[Part]:
    # Whole batches: the last bits of a probability depend on the number of images in its batch.
    part_size = math.ceil(config.part_size / config.batch_size) * config.batch_size
    cuts = _split(range(len(content_hash)), part_size) or [range(0)]  # an empty pool has one empty part
    return [
        Part(folder.part(index), rows, content_hash[rows.start : rows.stop], _footer(rows, encoder))
        for index, rows in enumerate(cuts)
    ]


def _split(rows: range, size: int) -> list[range]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def _array(rows: range) -> Rows:
    return np.arange(rows.start, rows.stop, dtype=np.int64)


class _Writer:
    """Writes one part at a time in a thread, so that the model does not wait for the disk.

    Use it as a context manager: at its end the last part is on the disk.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._job: Future[None] | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Start to write a part, after the previous one is written."""
        self.wait()
        self._job = self._thread.submit(work, *arguments)

    def wait(self) -> None:
        """Wait until the current part is written. An error in the thread is raised here."""
        if self._job is not None:
            self._job.result()


def _watched(
    batches: Iterator[Images],
    done: int,
    total: int,
    task: str,
    progress: Progress,
) -> Iterator[Images]:
    """The same batches; between two of them the progress advances, and a signal stops the work.

    `done` is the number of images before the first batch.
    """
    for batch in batches:
        progress.check()
        yield batch
        done += len(batch)
        progress.advance(task, done, total)


def _encoded(
    encoder: Encoder,
    predict: Callable[[Images], Tensor | Vote],
    batches: Iterator[Images],
    rows: range,
    ids: Callable[[Rows], list[str]],
) -> pa.Table:
    """The columns of one part that depend on the probabilities.

    Raises:
        RunError: the logits of an image are not finite, or the number of images is wrong.
    """
    fields = encoder.fields()
    # Allocated at full size at the start. Small arrays kept from each batch would lie in memory between the
    # large ones that the model frees, and the allocator could not use that memory again.
    columns = {field.name: _empty(field.type, len(rows)) for field in fields}
    done = 0
    # One batch late: the GPU computes the next batch while the host works.
    for encoded in on_host(map(partial(encoder.encode, predict), batches), lag=1):
        here = slice(done, done + len(encoded))
        done += len(encoded)
        if done > len(rows):
            continue  # too many images; count them all for the message below
        values = encoder.columns(encoded)
        bad = np.isnan(values["confidence"])
        if bad.any():
            first = ids(_array(rows[here])[bad][:1])[0]
            raise RunError(
                f"the teacher's logits are not finite for image {first!r}; it has diverged, train it again"
            )
        for name, column in values.items():
            columns[name][here] = column
    if done != len(rows):
        raise RunError(
            f"{done} images were read for {len(rows)} pool rows from row {rows[0]} on; the pool has changed"
        )
    arrays = [lists(values) if values.ndim == 2 else pa.array(values) for values in columns.values()]
    return pa.table(arrays, schema=pa.schema(fields))


def _empty(kind: pa.DataType, rows: int) -> NDArray[Any]:
    """An array for the values of a column of this type: (rows,), or (rows, k) for lists of k."""
    if pa.types.is_fixed_size_list(kind):
        return np.empty((rows, kind.list_size), kind.value_type.to_pandas_dtype())
    return np.empty(rows, kind.to_pandas_dtype())


def _write(
    part: Part,
    encoded: pa.Table,
    ids: Callable[[Rows], list[str]],
    index: PartIndex,
) -> None:
    """Write a part atomically, with the columns described in `records.PseudoLabels`, and its checksum."""
    rows = _array(part.rows)
    images = {
        "row": pa.array(rows),
        "id": pa.array(ids(rows), pa.string()),
        "content_hash": hashes(part.content_hash),
    }
    table = pa.table([*images.values(), *encoded.columns], names=[*images, *encoded.column_names])
    with atomic(part.path) as partial:
        pq.write_table(table.replace_schema_metadata(part.about), partial, **_ENCODING)
        index.files[part.path.name] = checksum(partial)
    index.write()
    pa.default_memory_pool().release_unused()  # otherwise Arrow keeps the buffers of two parts in memory


def _footer(part: range, encoder: Encoder) -> dict[str, str]:
    """Content of the footer: the rows of the part, and the settings that its probabilities depend on."""
    about = {
        "format": LABELS_FORMAT,
        "first_row": str(part.start),
        "rows": str(len(part)),
        "num_classes": str(encoder.num_classes),
        "temperature": repr(encoder.temperature),
        "stored": str(encoder.stored),
        "energy": "1",  # parts of older versions have no such column
    }
    # One teacher is not named, so that its parts are those of older versions.
    return about | ({"teachers": str(encoder.voters)} if encoder.voters > 1 else {})
