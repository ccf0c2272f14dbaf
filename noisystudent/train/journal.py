"""Measurements of a training: metrics.jsonl, which no interruption changes, and points for TensorBoard."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

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


class Board:
    """Points of learning curves for TensorBoard, in a new file of a folder; those of older files are hidden.

    The file is written by the caller's thread. SummaryWriter has a thread of its own, and there a full disk
    is a traceback.

    Args:
        folder: made if it does not exist.

    Raises:
        RunError: the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        # TensorBoard reads the files in the order of their names.
        name = f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write {folder}: {error.strerror or error}") from error
        start = SessionLog(status=SessionLog.START)
        self._write(Event(file_version="brain.Event:2"), Event(session_log=start, step=0))

    def draw(self, line: dict[str, float]) -> None:
        """Write one point for each value of a line of metrics.jsonl.

        Raises:
            RunError: the disk is full.
        """
        values = [Summary.Value(tag=name, simple_value=line[name]) for name in line if name != "step"]
        self._write(*(Event(summary=Summary(value=[value]), step=int(line["step"])) for value in values))

    def _write(self, *events: Event) -> None:
        try:
            with self._path.open("ab") as file:
                for event in events:
                    event.wall_time = time.time()
                    RecordWriter(file).write(event.SerializeToString())
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror or error}") from error


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
