"""Label the pool with the teacher in parts; a killed run loses at most the part being computed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.config import PseudoLabelConfig
from noisystudent.console import Progress
from noisystudent.distributed import group
from noisystudent.errors import RunError
from noisystudent.pseudo_label.encode import Encoder, Images
from noisystudent.pseudo_label.parts import check_about, lists
from noisystudent.pseudo_label.resume import Part, about, missing_parts, resume
from noisystudent.pseudo_label.writing import Writer, write_part
from noisystudent.records import PseudoLabels, Vote
from noisystudent.run.rundir import LABELS_FORMAT, LabelsDir
from noisystudent.run.shared_parts import SharedParts
from noisystudent.runtime import on_host

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
    join: Callable[[], object] | None = None,
) -> PseudoLabels:
    """Store softmax(logits / temperature) of every pool image. A second call after a stop continues.

    Each part has `part_size` pool rows, rounded up to whole batches. Complete parts of the same images and
    settings are kept, others are made again or removed. All processes of a run, and any that join it, share
    the parts out by leases; a part has the same bytes whoever makes it. Each process stays until all parts
    are there, to take over those of processes that die. `config.hard` has no effect; see `read_targets`.

    Args:
        prepare: (number of images of all processes, largest batch size) -> the teacher, and its batch size.
        images: pool rows of each batch -> images of each batch. Rows of a part are drawn when it is claimed.
        ids: pool rows -> names of the images.
        content_hash: (N, 16) uint8, one row for each pool image.
        num_classes, voters: number of classes, K, and of teachers.
        config: temperature, batch size, part size, and the number of probabilities stored above 256 classes.
        out: folder of the parts.
        task, progress: name of this work and its display. A signal stops the work between two batches.
        join: given if another process has begun the labelling. It is called before the first part, and raises
            if `out` is not for labels of this teacher. None: parts are compared with their checksums.

    Raises:
        RunError: the teacher's logits are not finite or do not have K classes, or images are missing.
        Stopped: a signal came. All finished parts are on disk.
    """
    encoder = Encoder(num_classes, config.temperature, config.top_k, voters)
    folder = LabelsDir(out)
    parts = _parts(folder, config, content_hash, encoder)
    begin = partial(resume, folder, parts, task, progress)
    todo = group().lead(begin) if join is None else _images(missing_parts(folder, parts))
    predict, batch_size = prepare(todo, len(parts[0].rows))
    with SharedParts(folder, about(parts), check_about) as shared:
        if join is not None:
            join()
        work = _Work(partial(_encoded, encoder, predict, ids), images, ids, batch_size, shared)
        _make_all(folder, parts, work, task, progress)
        group().lead(partial(shared.finish, [part.path for part in parts]))
    return PseudoLabels(out, num_classes)


def _make_all(
    folder: LabelsDir, parts: list[Part], work: _Work[Images], task: str, progress: Progress
) -> None:
    """Make parts until all exist, and wait for those of other processes."""
    while missing := missing_parts(folder, parts):
        if not work.make(missing, partial(_watched, folder, parts, task, progress)):
            work.shared.wait(missing[0].path, progress)
    progress.advance(task, _images(parts), _images(parts))


@dataclass(frozen=True, slots=True)
class _Work(Generic[Images]):
    """What parts are made with: their columns of (batches, rows), and the arguments of `label_images`."""

    encoded: Callable[[Iterator[Images], range], pa.Table]
    images: Callable[[Iterator[Rows]], Iterator[Images]]
    ids: Callable[[Rows], list[str]]
    batch_size: int
    shared: SharedParts

    def make(self, missing: list[Part], watched: Callable[[Iterator[Images]], Iterator[Images]]) -> bool:
        """Make all missing parts that no other process makes; False if there are none.

        `watched` shows the batches of a part in the progress.
        """
        made = False
        with Writer() as writer:
            for part, batches in self._claimed(missing):
                table = self.encoded(watched(batches), part.rows)
                writer.submit(write_part, part, table, self.ids, self.shared)
                made = True
        return made

    def _claimed(self, missing: list[Part]) -> Iterator[tuple[Part, Iterator[Images]]]:
        """The parts that this process claims, each with its batches, which are drawn before the next part."""
        claims = (part for part in missing if self.shared.claim(part.path))
        first = next(claims, None)
        if first is None:  # before anything is started to read images
            return
        drawn = deque[Part]()

        def requests() -> Iterator[Rows]:
            for part in chain([first], claims):
                drawn.append(part)
                yield from map(_array, _split(part.rows, self.batch_size))

        stream = self.images(requests())
        while True:
            begun = list(islice(stream, 1))  # draws requests, and with the first of a part the part
            if not drawn:
                return
            part = drawn.popleft()
            rest = max(0, len(_split(part.rows, self.batch_size)) - 1)
            yield part, chain(begun, islice(stream, rest))


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


def _images(parts: list[Part]) -> int:
    return sum(len(part.rows) for part in parts)


def _watched(
    folder: LabelsDir, parts: list[Part], task: str, progress: Progress, batches: Iterator[Images]
) -> Iterator[Images]:
    """The same batches; between two of them the progress advances, and a signal stops the work."""
    total = _images(parts)
    done = total - _images(missing_parts(folder, parts))  # also by other processes
    for batch in batches:
        progress.check()
        yield batch
        done += len(batch)
        progress.advance(task, done, total)


def _encoded(
    encoder: Encoder,
    predict: Callable[[Images], Tensor | Vote],
    ids: Callable[[Rows], list[str]],
    batches: Iterator[Images],
    rows: range,
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
