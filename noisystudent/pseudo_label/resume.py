"""Parts that an interrupted labelling has finished: those that are intact are kept."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisystudent.console import Progress
from noisystudent.errors import RunError
from noisystudent.pseudo_label.parts import footer, hashes, read_index
from noisystudent.run.checksums import problems
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


def resume(folder: LabelsDir, parts: list[Part], task: str, progress: Progress) -> int:
    """Remove every part that must be labelled again, also while other processes label.

    Damaged parts are moved away and named. Parts that are not in `parts`, for example those of a larger pool,
    are removed. Afterwards there is a parts.json. Returns the number of images that are to be labelled.

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
    planned = {part.path.name: part for part in parts}
    # In this order: a part that is published meanwhile has its checksum in an index before.
    existing = {path.name for path in folder.parts()}
    known = read_index(folder)
    for name in sorted(existing | known.files.keys()):
        part, expected = planned.get(name), known.files.get(name)
        if part is None or expected is None:  # without a checksum nothing shows that it is complete
            remove(folder.path / name)
            continue
        again = "its images are labelled again"
        damaged = is_damaged(folder, name, expected, task=task, again=again, progress=progress)
        if not damaged and not _is_complete(part):
            remove(part.path)
    if known.about != about(parts):
        PartIndex(folder, about(parts), known.files).write()
    return sum(len(part.rows) for part in missing_parts(folder, parts))


def missing_parts(folder: LabelsDir, parts: list[Part]) -> list[Part]:
    """Return the parts that do not exist."""
    existing = set(folder.parts())
    return [part for part in parts if part.path not in existing]


def about(parts: list[Part]) -> dict[str, int]:
    """Return what parts.json says of all parts."""
    return {"rows": sum(len(part.rows) for part in parts)}


def is_of_other_images(folder: LabelsDir, content_hash: NDArray[np.uint8]) -> bool:
    """True if a part has the labels of other images than its rows of `content_hash`, (N, 16).

    A larger pool that begins with the labelled images is no other one. Damaged parts are not looked at; one
    without a checksum is.
    """
    known = read_index(folder).files
    for path in folder.parts():
        with suppress(RunError, OSError, pa.ArrowException):  # `resume` names what is damaged
            about = footer(path)
            first, count = int(about["first_row"]), int(about["rows"])
            if _are_of(path, content_hash[first : first + count]):
                continue
            expected = {name: known[name] for name in [path.name] if name in known}
            if not problems(folder.path, expected, contents=True):
                return True
    return False


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
    return _are_of(part.path, part.content_hash)


def _are_of(path: Path, content_hash: NDArray[np.uint8]) -> bool:
    """True if a part has the labels of the images with these content hashes (n, 16), in order."""
    with pq.ParquetFile(path) as file:
        column = file.read(columns=["content_hash"]).column(0)
    return bool(column.equals(pa.chunked_array([hashes(content_hash)])))
