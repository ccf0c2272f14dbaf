"""parts.json: the complete parts of a folder, also while several processes make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from noisystudent.console import Progress
from noisystudent.distributed import group
from noisystudent.errors import RunError
from noisystudent.run.aside import put_aside
from noisystudent.run.checksums import Checksum, problems
from noisystudent.run.files import read_json, remove, write_json
from noisystudent.run.rundir import IndexedDir

Files = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class PartIndex:
    """Content of parts.json.

    Attributes:
        folder: folder of the parts.
        about: what the parts have in common, as JSON. Empty: there is no such file.
        files: name of a part -> its checksum, and what else is known of it.
        rank: number of the process that makes these parts. Until all are made, those of other processes than
            process 0 are in a file of their own.
    """

    folder: IndexedDir
    about: Mapping[str, Any]
    files: Files = field(default_factory=dict)
    rank: int = 0

    def own(self) -> PartIndex:
        """Return the index for the parts that this process makes: that of process 0 has these, too."""
        rank = group().rank
        return replace(self, files={}, rank=rank) if rank else self

    def write(self) -> None:
        """Write the parts of this process.

        Raises:
            RunError: the disk is full.
        """
        files = dict(sorted(self.files.items()))
        write_json(self.folder.index_of(self.rank), {**self.about, "files": files})

    def join(self) -> None:
        """Write parts.json with the parts that all processes have made.

        Raises:
            RunError: the disk is full.
        """
        made = group().gather(self.files)
        group().lead(partial(_join, self, made))


def _join(index: PartIndex, made: Sequence[Files]) -> None:
    replace(index, files={name: about for part in made for name, about in part.items()}).write()
    for path in index.folder.indices():
        if path != index.folder.index:
            remove(path)


def read_indices(folder: IndexedDir, check: Callable[[Mapping[str, Any]], object]) -> list[PartIndex]:
    """Return the readable indices of all processes, that of process 0 first.

    parts.json is read last. If a process joins the indices meanwhile, it writes it before it deletes others.

    Args:
        folder: folder of the parts.
        check: raises KeyError, TypeError or ValueError if `PartIndex.about` is wrong.
    """
    indices: list[PartIndex] = []
    for path in reversed(folder.indices()):
        try:
            content = dict(read_json(path))
            files = dict(content.pop("files"))
            check(content)
        except (FileNotFoundError, RunError, KeyError, TypeError, ValueError):
            continue
        indices.append(PartIndex(folder, content, files))
    return indices[::-1]


def read_joined(folder: IndexedDir, check: Callable[[Mapping[str, Any]], object]) -> PartIndex:
    """Return the indices of all processes as one; without a readable one, `about` is empty.

    The arguments are those of `read_indices`. If several processes have made a part, on machines whose
    results differ in the last bits, its checksum is that of the file that is there.
    """
    joined = PartIndex(folder, {})
    for index in reversed(read_indices(folder, check)):
        joined = replace(index, files=joined.files)  # `about` of parts.json, if there is one
        for name, known in index.files.items():
            if joined.files.setdefault(name, known) != known and not problems(
                folder.path, {name: known}, contents=True
            ):
                joined.files[name] = known
    return joined


def is_damaged(
    folder: IndexedDir, name: str, expected: Checksum, *, task: str, again: str, progress: Progress
) -> bool:
    """Return True if a part differs from its checksum. It is then moved away and named.

    Args:
        folder: folder of the part.
        name: file name of the part.
        expected: its checksum.
        task: name of the work in `progress`.
        again: what is done about it, in words.
        progress: receives a line; a signal stops the work before.

    Raises:
        RunError: the file cannot be moved.
        Stopped: a signal came.
    """
    progress.check()
    there = (folder.path / name).exists()  # a worker may publish a missing part after the comparison
    damage = problems(folder.path, {name: expected}, contents=True)
    for path, problem in damage.items():
        kept = f"; kept in {put_aside(path)}" if there else ""
        progress.say(f"{task}: {name} {problem}{kept}; {again}")
    return bool(damage)
