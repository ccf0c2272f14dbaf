"""metrics.jsonl: one line for each measurement, in step order, not changed by interruptions of the run."""

from __future__ import annotations

import json
import os
from pathlib import Path

from noisystudent.errors import RunError
from noisystudent.run import files


class Journal:
    """Appends measurements to a file of JSON lines.

    Opening removes the lines after `step`, because the resumed run writes them again.

    Args:
        path: metrics.jsonl; created if it does not exist.
        step: step at which the run starts or resumes.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        files.write_text(path, files.json_lines(kept_lines(path, step)))

    def append(self, line: dict[str, float]) -> None:
        """Write one line immediately, so that a killed run loses at most this line.

        Raises:
            RunError: the disk is full.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror or error}") from error

    def sync(self) -> None:
        """Force all lines to disk. Call it before a snapshot, which must not be newer than the lines."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())


def kept_lines(path: Path, step: int) -> list[dict[str, float]]:
    """Read the lines before the first that is incomplete or later than `step`; none if there is no file."""
    lines: list[dict[str, float]] = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines(keepends=True):
        try:
            measurement = json.loads(line)
            if not line.endswith("\n") or measurement["step"] > step:
                break
        except (json.JSONDecodeError, KeyError, TypeError):  # incomplete after a power failure
            break
        lines.append(measurement)
    return lines
