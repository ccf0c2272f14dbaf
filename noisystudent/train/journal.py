"""metrics.jsonl: a line a measurement, in step order, the same whether or not the run was interrupted."""

from __future__ import annotations

import json
import os
from pathlib import Path

from noisystudent import rundir
from noisystudent.errors import RunError


class Journal:
    """Appends lines to `path`; opening drops those after `step`, which the resumed run will write again."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        rundir.write_text(path, rundir.json_lines(kept(path, step)))

    def append(self, line: dict[str, float]) -> None:
        """Write one line at once, so that a kill loses at most this one.

        Raises:
            RunError: the disk is full.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror or error}") from error

    def sync(self) -> None:
        """Put all lines on the disk: a snapshot of this step may follow."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())


def kept(path: Path, step: int) -> list[dict[str, float]]:
    """The whole lines before the first that is torn or later than `step`."""
    found: list[dict[str, float]] = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines(keepends=True):
        try:
            read = json.loads(line)
            if not line.endswith("\n") or read["step"] > step:
                break
        except (json.JSONDecodeError, KeyError, TypeError):  # torn by a power cut
            break
        found.append(read)
    return found
