"""Reading and writing files so that a file or folder is either complete or absent, even after a kill."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike

from noisystudent.errors import InputError, RunError, first_line

# What file systems without hard links answer to one.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def sync_folder(path: Path) -> None:
    """Flush the entries of the folder `path` to the disk, so that renames in it survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(path: Path) -> None:
    # fsync of a file works on a read-only descriptor too, so the same function serves files and folders.
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    for file in files:
        sync_folder(file)


def remove(path: Path) -> None:
    """Delete a file, a folder or a symbolic link, if it exists."""
    if path.is_dir() and not path.is_symlink():  # never follow a link into a folder of the user
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    """The temporary path beside `path`: a rename is atomic only within one file system."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def _cleaned(path: Path) -> Iterator[Path]:
    """Yield the temporary path beside `path`, and remove what is there if the block fails.

    Raises:
        RunError: the disk is full or cannot be written, or a file would replace a folder.
    """
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)  # a killed process may have left it
        yield partial
    except OSError as error:
        with suppress(OSError):  # it may be as forbidden as the writing of it
            remove(partial)
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:  # KeyboardInterrupt too
        remove(partial)
        raise


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` if the block succeeds.

    The block makes a file or a folder at the temporary path. If the block fails, `path` is unchanged.

    Raises:
        RunError: the disk is full or cannot be written, or a file would replace a folder.
    """
    with _cleaned(path) as partial:
        yield partial
        # The content must reach the disk before the new name does; otherwise a power failure could leave a
        # complete name with incomplete content.
        _sync_tree(partial)
        if path.is_dir() and partial.is_dir():
            remove(path)  # os.replace does not replace a folder that holds files
        os.replace(partial, path)
        sync_folder(path.parent)


def publish(partial: Path, path: Path) -> None:
    """Rename a complete file of this file system to `path`. If `path` exists, it stays, and `partial` goes.

    Raises:
        OSError: the disk is full or cannot be written, or a folder does not exist.
    """
    _sync_tree(partial)
    try:
        os.link(partial, path)  # unlike a rename, it replaces nothing
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not path.exists():
            os.replace(partial, path)
    remove(partial)
    sync_folder(path.parent)


@contextmanager
def atomic_files(path: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder, and move what is in the folder to `path` if the block succeeds.

    The block makes a file or a folder at the yielded path, which has the name of `path`, and other files
    beside it. They replace files beside `path`, one after the other, and `path` last. If the block fails,
    nothing is changed.

    Raises:
        RunError: the disk is full or cannot be written, or a file would replace a folder.
    """
    with _cleaned(path) as folder:
        folder.mkdir()
        yield folder / path.name
        _sync_tree(folder)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.with_name(file.name))
        sync_folder(path.parent)
        folder.rmdir()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder for temporary files, which is removed in the end, also if this process is killed.

    Raises:
        RunError: the folder cannot be made.
    """
    # A process of its own, in a session of its own so that no signal to this group reaches it. Its standard
    # input ends when this process ends.
    remove_at_end = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1], ignore_errors=True)"
    command = [sys.executable, "-I", "-S", "-c", remove_at_end]
    try:
        folder = tempfile.mkdtemp(prefix="noisystudent-")
        remover = subprocess.Popen([*command, folder], stdin=subprocess.PIPE, start_new_session=True)
    except OSError as error:
        raise RunError(f"no temporary folder can be made: {error.strerror or error}") from error
    try:
        yield Path(folder)
    finally:
        remover.communicate()  # ends its input and waits


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file with `atomic`.

    Raises:
        RunError: the file cannot be written.
    """
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file with `atomic`, keys in the order of `content`.

    Raises:
        RunError: the file cannot be written.
    """
    # A metric may be NaN. Python writes and reads the word NaN, although it is not standard JSON.
    write_text(path, json.dumps(content, indent=2, allow_nan=True) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        RunError: the file is not valid JSON, or it is a folder.
        FileNotFoundError: there is no such file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    # A folder; not JSON or not UTF-8; or nested without end.
    except (IsADirectoryError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is not valid JSON ({first_line(error)}); delete it and run again") from error


def check_out(
    out: Path, *, overwrite: bool = False, suffixes: Collection[str] = (), flag: str = "--out"
) -> None:
    """Check that the output file of a command can be written, before hours are spent on its content.

    The folder of the file is made if it does not exist.

    Args:
        out: path of the file.
        overwrite: allow an existing file, which will be replaced.
        suffixes: allowed suffixes in lower case, e.g. ".csv". Empty: any suffix.
        flag: the flag that names the file. Empty: the caller cannot choose the file.

    Raises:
        InputError: `out` has another suffix, exists, is a folder or a device, or cannot be written.
    """
    if os.path.isdir(out):
        raise InputError(f"{flag} is {out}, which is a folder; name a file" if flag else f"{out} is a folder")
    if os.path.exists(out) and not os.path.isfile(out):  # it would be deleted, and a file take its place
        kind = "is a device, a pipe or a socket"
        raise InputError(f"{flag} is {out}, which {kind}; name a file" if flag else f"{out} {kind}")
    if suffixes and out.suffix.lower() not in suffixes:
        raise InputError(f"{flag} is {out}; the file must end in {' or '.join(suffixes)}")
    if not overwrite and os.path.lexists(out):  # a broken symbolic link counts as a file too
        raise InputError(
            f"{flag} is {out}, which exists; name another file, or give --overwrite"
            if flag
            else f"{out} exists; give --overwrite to replace it"
        )
    _check_place(out, flag, Path.touch)


def check_new_folder(path: Path, flag: str) -> None:
    """Check that a folder does not exist and can be made, before hours are spent on its content.

    Raises:
        InputError: something is there already, or the folder around it cannot be written.
    """
    if os.path.lexists(path):
        raise InputError(f"{flag} is {path}, which exists; name a new folder")
    _check_place(path, flag, Path.mkdir)


def _check_place(path: Path, flag: str, make: Callable[[Path], None]) -> None:
    """Check that a file or a folder can be made beside `path`, whose folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(_partial(path))  # a killed process may have left it
        make(_partial(path))
        remove(_partial(path))
    except OSError as error:
        reason = f"cannot be written: {error.strerror}"
        raise InputError(
            f"{flag} is {path}, which {reason}; choose another place" if flag else f"{path} {reason}"
        ) from error


def new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Create a .npy file of zeros, and return it as a memory map. Its space on the disk is reserved.

    Without that, a disk that fills up would end the process by SIGBUS when the map is written.

    Raises:
        OSError: the disk is full.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def write_table(path: Path, table: pa.Table, metadata: dict[str, str] | None = None) -> None:
    """Write a Parquet file with `atomic`, zstd-compressed.

    Args:
        path: of the file.
        table: its rows.
        metadata: stored in the footer in place of the metadata of `table`. None: that of `table` is kept.

    Raises:
        RunError: the file cannot be written.
    """
    if metadata is not None:
        table = table.replace_schema_metadata(metadata)
    with atomic(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def csv_lines(rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """Yield a line of CSV for each row; a cell may hold any text."""
    text = io.StringIO()
    # With "\n" as the end of a line, a carriage return in a cell is not quoted before Python 3.13.
    lines = csv.writer(text, lineterminator="\r\n")
    for row in rows:
        lines.writerow(row)
        yield text.getvalue().removesuffix("\r\n") + "\n"
        text.seek(0)
        text.truncate()


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return JSON Lines text: one object per line, keys in the order of each row."""
    return "".join(json.dumps(row, allow_nan=True) + "\n" for row in rows)
