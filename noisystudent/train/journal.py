"""Measurements of a training: metrics.jsonl, which no interruption changes, and points for TensorBoard."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

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


def content(path: Path) -> bytes:
    """Return the bytes of a file that `Journal` has written.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error


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
