"""Progress as JSON lines on standard output, for programs that read it (`--log-format json`)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from noisystudent.console import Progress
from noisystudent.run.record import read_record
from noisystudent.trackers.measured import read_lines

_SECONDS = 1.0  # least time between two lines of the units done


class JsonLines(Progress):
    """Prints one JSON object a line, with the key `event`.

    message: `text`, a line for people. progress: `done` of `total` units of `task`, and a
    `note` such as the loss, at most once a second.
    metrics: a line of metrics.jsonl, with the name of the `stage`, once the stage is finished.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last = 0.0

    def say(self, line: str) -> None:
        """Print a message."""
        _print({"event": "message", "text": line})

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        """Print the units done, at most once a second."""
        if time.monotonic() - self._last >= _SECONDS:
            self._last = time.monotonic()
            _print({"event": "progress", "task": task, "done": done, "total": total, "note": note})

    def finish(self, record: Path) -> None:
        """Print the numbers of a stage. A stage that was finished by an earlier call is not printed again."""
        name = (read_record(record) or {}).get("name")
        for line in read_lines(record):
            _print({"event": "metrics", "stage": name, **line})


def _print(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)
