"""What two runs must have in common, file by file, and what a folder holds."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file

TIMED = {"images_per_second", "seconds", "finished", "memory", "checksums"}
"""Keys of JSON that depend on the clock or the machine, and checksums of files that hold such keys."""

REMADE = {
    ".noisystudent",
    "config.yaml",
    "environment.json",
    "report.html",
    "run.log",
    "schedule.json",
    "tensorboard",
}
"""Names of files that every call writes again or appends to; no later stage reads them."""


def _json(path: Path) -> object:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items() if key not in TIMED}
        return [plain(one) for one in value] if isinstance(value, list) else value

    return [plain(json.loads(line)) for line in path.read_text().splitlines()]


def _record(path: Path) -> object:
    content = json.loads(path.read_text())
    return {key: content.get(key) for key in ("name", "fingerprint", "inputs", "status")}


def _tensors(path: Path) -> object:
    tensors = load_file(path)
    return [(name, array.dtype.str, array.shape, array.tobytes()) for name, array in sorted(tensors.items())]


def _arrays(path: Path) -> object:
    with np.load(path) as arrays:
        return [(name, arrays[name].dtype.str, arrays[name].tobytes()) for name in sorted(arrays)]


def _table(path: Path) -> object:
    table = pq.read_table(path)
    sink = io.BytesIO()
    pq.write_table(table.combine_chunks(), sink)
    return sink.getvalue()


READERS: dict[str, Callable[[Path], object]] = {
    "stage.json": _record,
    ".jsonl": _json,
    ".safetensors": _tensors,
    ".npz": _arrays,
    ".parquet": _table,
}
"""Ending of a file to the function that returns what must be equal; of other files every byte must be."""


def results(run: Path) -> dict[str, str]:
    """Return {file: digest} of all results of a run directory, without clocks, logs and pages."""
    digests = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if not path.is_file() or name.split("/")[0] in REMADE | {"superseded"} or "/checkpoint/" in name:
            continue
        if name.endswith(".log"):  # each process has one
            continue
        read = next((reader for ending, reader in READERS.items() if name.endswith(ending)), Path.read_bytes)
        try:
            digests[name] = hashlib.sha256(repr(read(path)).encode()).hexdigest()[:16]
        except Exception as error:  # of any of the libraries that read: the file differs from a whole one
            digests[name] = f"unreadable: {type(error).__name__}: {error}"
    return digests


def differences(run: Path, expected: dict[str, str]) -> list[str]:
    """Return one line for each file of `run` that is missing, spare or other than expected."""
    here = results(run)
    lines = []
    for name in sorted(here.keys() | expected.keys()):
        if name not in expected:
            lines.append(f"{name}: not expected")
        elif here.get(name) != expected[name]:
            lines.append(f"{name}: {here.get(name, 'missing')}, not {expected[name]}")
    return lines


_LONGEST = 4096  # bytes of a path that the system accepts


def snapshot(folder: Path) -> dict[str, str]:
    """Return {name: kind, permissions, and digest or target} of everything below a folder of a user."""
    root = os.fsencode(folder)
    entries, folders = dict[str, str](), [root]
    while folders:  # no recursion: a folder may be thousands of levels deep
        parent = folders.pop()
        try:
            names = os.listdir(parent)
        except OSError as error:  # the path is too long, or the folder is gone meanwhile
            entries[os.fsdecode(os.path.relpath(parent, root))] = str(error.strerror)
            continue
        for name in names:
            path = os.path.join(parent, name)
            if len(path) < _LONGEST:
                status = os.lstat(path)
                entries[os.fsdecode(os.path.relpath(path, root))] = _described(path, status)
                folders += [path] if stat.S_ISDIR(status.st_mode) else []
    return entries


def _described(path: bytes, status: os.stat_result) -> str:
    text = stat.filemode(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return f"{text} {os.fsdecode(os.readlink(path))}"
    if not stat.S_ISREG(status.st_mode):
        return text
    if status.st_size > 1 << 26:  # sparse: nobody reads it for a digest
        return f"{text} {status.st_size}"
    with open(path, "rb") as file:
        return f"{text} {hashlib.sha256(file.read()).hexdigest()[:16]}"
