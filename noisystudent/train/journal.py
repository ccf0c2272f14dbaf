"""metrics.jsonl: one line for each measurement, in step order, not changed by interruptions of the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from noisystudent.errors import RunError, first_line
from noisystudent.run import files


class Journal:
    """Appends measurements to a file of JSON lines.

    Args:
        path: metrics.jsonl. What it holds is replaced: a resumed run writes the lines after its snapshot
            again.
        earlier: file with the lines of the snapshot that the run resumes from. None: the run starts.
    """

    def __init__(self, path: Path, earlier: Path | None) -> None:
        self.path = path
        with files.atomic(path) as partial:
            if earlier is None:
                partial.touch()
            else:
                shutil.copyfile(earlier, partial)

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


def read(path: Path) -> list[dict[str, float]]:
    """Read the lines of a file that `Journal` has written.

    Raises:
        RunError: the file is damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:  # not JSON, or not UTF-8
        raise RunError(f"{path} does not hold measurements ({first_line(error)})") from error
