"""Parts that an interrupted labelling has finished: those that are intact are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisystudent.console import Progress
from noisystudent.errors import RunError
from noisystudent.pseudo_label.parts import footer, hashes, read_index
from noisystudent.run.checksums import Checksum
from noisystudent.run.files import remove
from noisystudent.run.part_index import PartIndex, is_damaged
from noisystudent.run.rundir import LABELS_FORMAT, LabelsDir


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """A file of pseudo-labels that exists or is to be written.

    Attributes:
        path: path of the file.
        rows: pool rows.
        content_hash: (number of rows, 16) uint8.
        about: content that its footer must have.
    """

    path: Path
    rows: range
    content_hash: NDArray[np.uint8]
    about: dict[str, str]


def resume(folder: LabelsDir, parts: list[Part], task: str, progress: Progress) -> PartIndex:
    """Write parts.json with the parts that need not be labelled again, and return it.

    Damaged parts are moved away and named. Parts that are not in `parts`, for example those of a larger pool,
    are removed.

    Args:
        folder: made if it does not exist.
        parts: all parts that the pool is to have.
        task: name of this work in `progress`.
        progress: receives a line for each damaged part. A signal stops the work between two parts.

    Raises:
        RunError: the disk is full.
        Stopped: a signal came.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    if any(_is_of_another_version(path) for path in folder.parts()):
        progress.say(f"{task}: parts of another version of this program are labelled again")
    for beyond in set(folder.parts()) - {part.path for part in parts}:
        remove(beyond)
    known, intact = read_index(folder).files, dict[str, Checksum]()
    for part in parts:
        name = part.path.name
        # A part without a checksum is new: the process was killed before it wrote parts.json.
        again = "its images are labelled again"
        if name not in known or is_damaged(
            folder, name, known[name], task=task, again=again, progress=progress
        ):
            continue
        if _is_complete(part):
            intact[name] = known[name]
    index = PartIndex(folder, {"rows": sum(len(part.rows) for part in parts)}, intact)
    index.join()
    return index


def _is_of_another_version(path: Path) -> bool:
    """True if the file is a part of pseudo-labels in another format."""
    try:
        written: str = (pq.read_metadata(path).metadata or {}).get(b"format", b"").decode()
    except (OSError, pa.ArrowException, UnicodeDecodeError):
        return False  # a damaged file, which is named by its checksum
    return written != LABELS_FORMAT and written.partition("/")[0] == LABELS_FORMAT.partition("/")[0]


def _is_complete(part: Part) -> bool:
    """True if the file exists and has exactly these images and settings. Its checksum is correct."""
    if not part.path.exists():
        return False
    try:
        if footer(part.path) != part.about:
            return False
    except RunError:  # of another version of this program
        return False
    with pq.ParquetFile(part.path) as file:
        column = file.read(columns=["content_hash"]).column(0)
    return bool(column.equals(pa.chunked_array([hashes(part.content_hash)])))
