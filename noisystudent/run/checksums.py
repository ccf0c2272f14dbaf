"""Checksums of files: made when a stage ends, and compared before its files are used again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from noisystudent.errors import RunError
from noisystudent.run.files import read_json, write_json
from noisystudent.run.rundir import CHECKSUMS, RECORD

Checksum = dict[str, Any]
"""Size and hash of a file: {"bytes": …, "xxh3_128": …}."""


def checksum(path: Path) -> Checksum:
    """Return the checksum of a file.

    XXH3 finds accidental damage and reads faster than a disk. It gives no protection against an attacker.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, xxhash.xxh3_128)
    return {"bytes": path.stat().st_size, "xxh3_128": digest.hexdigest()}


def checksums(root: Path, paths: Iterable[Path]) -> dict[str, Checksum]:
    """Return {path relative to `root`: checksum} of the files `paths`, and of all files in folders in it.

    Left out are temporary files, records, and folders that have a record or checksums of their own.
    """
    files = sorted(file for path in paths for file in _files(path))
    return {file.relative_to(root).as_posix(): checksum(file) for file in files}


def problems(root: Path, expected: Mapping[str, Checksum], *, contents: bool) -> dict[Path, str]:
    """Return {path: "is missing" or "is damaged"} of the files that differ from their checksums.

    Args:
        root: folder that the names are relative to.
        expected: result of `checksums`.
        contents: read and compare whole files. False: compare their sizes alone.
    """
    compared = {root / name: _problem(root / name, known, contents) for name, known in expected.items()}
    return {path: problem for path, problem in compared.items() if problem is not None}


def seal(folder: Path) -> None:
    """Write a file with the checksums of all files in `folder` into it.

    Raises:
        RunError: the disk is full.
    """
    write_json(folder / CHECKSUMS, checksums(folder, folder.iterdir()))


def broken(folder: Path) -> str | None:
    """Return what is wrong with a folder that `seal` has sealed, or None.

    A folder without checksums, or with damaged ones, counts as broken.
    """
    try:
        different = problems(folder, read_json(folder / CHECKSUMS), contents=True)
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except (RunError, AttributeError, TypeError, KeyError):  # not JSON, or not a mapping of checksums
        return f"{CHECKSUMS} is damaged"
    return next((f"{path.name} {problem}" for path, problem in different.items()), None)


def _files(path: Path) -> Iterator[Path]:
    if path.name == RECORD or (path.name.startswith(".") and path.name.endswith(".partial")):
        return
    if path.is_file():
        yield path
    elif path.is_dir() and not any((path / name).exists() for name in (RECORD, CHECKSUMS)):
        for entry in path.iterdir():
            yield from _files(entry)


def _problem(path: Path, expected: Checksum, contents: bool) -> str | None:
    if not path.is_file():
        return "is missing"
    same = path.stat().st_size == expected["bytes"] and (not contents or checksum(path) == expected)
    return None if same else "is damaged"
