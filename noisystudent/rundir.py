"""What a run writes and how it is read back: every file appears whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from noisystudent.errors import InputError, RunError

MARKER = ".noisystudent"
"""Marks a folder as written by this program. Any other folder is written into only if it is empty."""

FINETUNE = "finetune"
"""Folder of a model's second training, in that of the first."""

OWNED: set[Path] = set()
"""Folders this process has locked."""


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


def check_out(out: Path, *, overwrite: bool = False, suffixes: Collection[str] = ()) -> None:
    """See whether a file can be written, before hours go into it; makes its folder.

    Args:
        out: the file.
        overwrite: it may take the place of another file.
        suffixes: endings it may have, in lower case; none given: any.

    Raises:
        InputError: another ending, a file or a folder of that name, or a place that cannot be written.
    """
    if out.is_dir():
        raise InputError(f"--out is {out}, which is a folder; name a file")
    if suffixes and out.suffix.lower() not in suffixes:
        raise InputError(f"--out is {out}; the file must end in {' or '.join(suffixes)}")
    if not overwrite and os.path.lexists(out):
        raise InputError(f"--out is {out}, which exists; name another file, or give --overwrite")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out is {out}, which cannot be written: {error.strerror}") from error
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise InputError(f"--out is {out}, but {out.parent} cannot be written; name a file somewhere else")


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


@contextmanager
def lock(folder: Path, kind: str = "run") -> Iterator[None]:
    """Own `folder` for the length of the block: new, empty, or marked as a folder of this kind before.

    The marker is the lock. The kernel holds the lock for the process and drops it with the process, so a
    killed run never blocks the next.

    Raises:
        InputError: the folder holds other files, another run owns it, or it cannot be written.
    """
    path = folder / MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_other_files(folder)
        # a symbolic link here could lead to a file of the user
        held = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)]
    except OSError as error:
        raise InputError(f"--out {folder} cannot be used: {error.strerror}; choose another") from error

    def release() -> None:
        while held:
            os.close(held.pop())

    # A forked worker shares the lock: were it to outlive a killed run, it would go on holding it.
    os.register_at_fork(after_in_child=release)
    owner = folder.resolve()
    try:
        _acquire(held[0], folder, kind)
        OWNED.add(owner)
        try:
            yield
        finally:
            OWNED.discard(owner)
    finally:
        release()


def _refuse_other_files(folder: Path) -> None:
    """A folder without the marker must be empty: what lies in it belongs to the user."""
    names = sorted(entry.name for entry in os.scandir(folder))
    if names and MARKER not in names:
        few = ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")
        raise InputError(
            f"--out {folder} holds files that are not of a run ({few}); choose a new or an empty folder"
        )


def _acquire(descriptor: int, folder: Path, kind: str) -> None:
    """Lock the marker, see that it is of this kind, and write `<kind> <process>` into it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = _owner(descriptor)
        if found and found[0] != kind:
            raise InputError(f"--out {folder} is the folder of a {found[0]}, not of a {kind}; choose another")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{kind} {os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        process = next(iter(_owner(descriptor)[1:]), "unknown")
        raise InputError(f"--out {folder} is in use by process {process}; choose another --out") from error
    except OSError as error:
        raise InputError(f"--out {folder} cannot be locked ({error.strerror}); choose another") from error


def _owner(descriptor: int) -> list[str]:
    """The words of a marker: its kind and the last process; nothing of one that was never filled."""
    return os.pread(descriptor, 64, 0).decode(errors="replace").split()
