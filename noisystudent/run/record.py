"""The record of a stage on disk: its inputs, its status, its result and the checksums of its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from noisystudent.errors import InputError, RunError
from noisystudent.run.checksums import problems
from noisystudent.run.files import read_json, write_json
from noisystudent.run.fingerprint import fingerprint
from noisystudent.run.rundir import RECORD, RunDir

Facts = dict[str, Any]
"""Content that can be written as a JSON object."""

_KINDS = {"name": str, "fingerprint": str, "status": str, "inputs": dict}


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record, with a checksum of its own content.

    Raises:
        RunError: the disk is full.
    """
    own = {key: value for key, value in content.items() if key != "checksum"}
    write_json(path, own | {"checksum": fingerprint(own)})


def read_record(path: Path) -> Facts | None:
    """Return the content of a record; None if there is none.

    Raises:
        RunError: the file is damaged, or is not a record.
    """
    try:
        record: object = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(record, dict) or not all(isinstance(record.get(k), v) for k, v in _KINDS.items()):
        raise RunError(f"{path} is not the record of a stage")
    # They become names of folders, which must not lead out of the run.
    if any("/" in record[key] or "\0" in record[key] for key in ("name", "fingerprint")):
        raise RunError(f"{path} is not the record of a stage")
    # Records of older versions have neither. Both are looked for, because one of the keys may be damaged.
    if record.keys() & {"checksum", "files"} and record.pop("checksum", None) != fingerprint(record):
        raise RunError(f"{path} is damaged")
    return record


def records(run: RunDir) -> Iterator[Path]:
    """Yield the existing stage records of a run in the order of the stages."""
    yield from run.data.path.glob(RECORD)
    yield from sorted(run.path.glob(f"embeddings*/{RECORD}"))
    # Not `run.iterations()`: folders of students that the configuration no longer has stay on disk.
    for index in range(1 + (run.student_count() or 0)):
        yield from run.iteration(index).records()
    yield from run.path.glob(run.verdict.with_suffix(f".{RECORD}").name)


def valid_record(path: Path) -> Facts | None:
    """Return the content of a record; None if there is none, or if it is damaged."""
    try:
        return read_record(path)
    except RunError:
        return None


def require_intact(file: Path) -> None:
    """Check a file of a finished stage before another command uses it.

    Raises:
        InputError: it differs from the checksum in the record beside it.
        RunError: the record is damaged.
    """
    path = file.parent / RECORD
    record = read_record(path) or {}
    known = {name: value for name, value in record.get("files", {}).items() if name == file.name}
    for problem in problems(file.parent, known, contents=True).values():
        raise InputError(f"{file} {problem}; start its run again to make it again")
