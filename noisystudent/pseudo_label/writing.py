"""Write parts of pseudo-labels, in a thread of their own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisystudent.pseudo_label.parts import hashes
from noisystudent.pseudo_label.resume import Part
from noisystudent.run.shared_parts import SharedParts

Rows = NDArray[np.int64]

# A dictionary saves space only for labels, which repeat. Statistics of lists of probabilities would be large.
_ENCODING: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["label"],
    "write_statistics": ["row", "label", "confidence"],
    "column_encoding": {"row": "DELTA_BINARY_PACKED"},
}


class Writer:
    """Writes one part at a time in a thread, so that the model does not wait for the disk.

    Use it as a context manager: at its end the last part is on the disk.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._job: Future[None] | None = None

    def __enter__(self) -> Writer:
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


def write_part(
    part: Part,
    encoded: pa.Table,
    ids: Callable[[Rows], list[str]],
    shared: SharedParts,
) -> None:
    """Publish a part, with the columns described in `records.PseudoLabels`."""
    rows = np.arange(part.rows.start, part.rows.stop, dtype=np.int64)
    images = {
        "row": pa.array(rows),
        "id": pa.array(ids(rows), pa.string()),
        "content_hash": hashes(part.content_hash),
    }
    table = pa.table([*images.values(), *encoded.columns], names=[*images, *encoded.column_names])
    table = table.replace_schema_metadata(part.about)

    def write(path: Path) -> None:
        pq.write_table(table, path, **_ENCODING)

    shared.publish(part.path, write)
    pa.default_memory_pool().release_unused()  # otherwise Arrow keeps the buffers of two parts in memory
