"""What a run writes and how it is read back: every file appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from noisystudent.errors import RunError

FINETUNE = "finetune"
"""Folder of a model's second training, in that of the first."""


def sync_folder(path: Path) -> None:
    """Make renames inside `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(path: Path) -> None:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    for file in files:
        sync_folder(file)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`, for the caller to make a file or folder of; rename it on success.

    Raises:
        RunError: the disk is full or cannot be written, or a file would take the place of a folder; `path` is
            as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    remove(partial)
    try:
        yield partial
        _sync_tree(partial)
        if path.is_dir() and partial.is_dir():
            remove(path)
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        remove(partial)
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:
        remove(partial)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically, keys in the caller's order."""
    write_text(path, json.dumps(content, indent=2, allow_nan=True) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RunError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is not valid JSON (line {error.lineno}); delete it and run again") from error


def student_count(run: Path) -> int | None:
    """How many students the configuration of a run names; a run that once had more still holds the others.

    Returns:
        None where there is no configuration that says it.

    Raises:
        RunError: config.yaml is damaged.
    """
    path = run / "config.yaml"
    if not path.is_file():
        return None
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except yaml.YAMLError as error:
        raise RunError(f"{path} is not valid YAML ({' '.join(str(error).split())}); run again") from error
    students = said.get("students") if isinstance(said, dict) else None
    return len(students) if isinstance(students, list) else None


def write_table(path: Path, table: pa.Table, metadata: dict[str, str] | None = None) -> None:
    """Write a Parquet file atomically, zstd-compressed, with `metadata` in its footer."""
    if metadata is not None:
        table = table.replace_schema_metadata(metadata)
    with atomic(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, allow_nan=True) + "\n" for row in rows)
