"""Images in folders: `<class>/<image>` for labelled sets, any nesting for the pool."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from noisystudent.data.sources.base import Item, Skipped, digest
from noisystudent.errors import InputError


class FolderSource:
    """A folder of image files; id is the path below it.

    The label is the top folder of a labelled set, and the folder that holds the image in a pool.

    Symbolic links are followed; one that leads back to a folder above it is not entered again.

    Raises:
        InputError: there is no image, or a labelled folder has no class folders.
    """

    shards = 1

    def __init__(self, root: Path, labeled: bool) -> None:
        self.name = str(root)
        self._root = str(root)
        self._labeled = labeled
        self._skipped = Skipped(Counter())
        self._notes = self._check()
        self._length: int | None = None

    def __len__(self) -> int:
        """Number of image files."""
        if self._length is None:
            self._length = sum(1 for _ in self._walk())
        return self._length

    def items(self) -> Iterator[Item]:
        """Image files in the order of their names, folder by folder."""
        self._skipped.counts.clear()
        count = 0
        for count, (path, entry) in enumerate(self._walk(), start=1):  # noqa: B007 read after the loop
            yield Item(path, self._label(path), 0, 0, _size(entry))
        self._length = count

    def read(self, _shard: int, _offset: int, _size: int, name: str, /) -> bytes:
        """The bytes of one file."""
        with open(os.path.join(self._root, name), "rb") as file:
            return file.read()

    def fingerprint(self) -> str:
        """Over (path, bytes, mtime) of every image file."""
        return digest((path, *_times(entry)) for path, entry in self._walk())

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """Empty class folders, loose files, unknown suffixes."""
        return self._notes + self._skipped.notes(self.name)

    def _label(self, path: str) -> str:
        if self._labeled:
            return path.split("/", 1)[0]
        return os.path.basename(os.path.dirname(os.path.join(self._root, path)))

    def _walk(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        for path, entry in _files(self._root, "", ()):
            if (not self._labeled or "/" in path) and self._skipped.is_image(path):
                yield path, entry

    def _check(self) -> tuple[str, ...]:
        """Look for one image in each top folder; labelled sets need class folders."""
        if not self._labeled:
            if next(self._walk(), None) is None:
                raise InputError(f"{self.name}: no images in this folder")
            return ()
        entries = [entry for entry in _listing(self._root) if not entry.name.startswith(".")]
        folders = [entry.name for entry in entries if _is_folder(entry)]
        if not folders:
            raise InputError(f"{self.name}: no class folders; labelled images lie in <class>/<image>")
        empty = [name for name in folders if not self._holds_image(name)]
        if len(empty) == len(folders):
            raise InputError(f"{self.name}: no images in its {len(folders)} class folders")
        loose = sum(self._skipped.is_image(entry.name) for entry in entries if not _is_folder(entry))
        notes = [f"{self.name}: class folder {name!r} holds no image and is left out" for name in empty]
        if loose:
            notes.append(f"{self.name}: {loose} images outside any class folder are left out")
        return tuple(notes)

    def _holds_image(self, folder: str) -> bool:
        files = _files(os.path.join(self._root, folder), folder + "/", _ancestry(self._root))
        return any(self._skipped.is_image(path) for path, _ in files)


def _files(
    folder: str, prefix: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Files below `folder` as (posix path, entry); `above` are the folders entered so far, by inode."""
    here = _ancestry(folder)
    if here[0] in above:
        return
    for entry in _listing(folder):
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _files(entry.path, f"{prefix}{entry.name}/", above + here)
        else:
            yield prefix + entry.name, entry


def _listing(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from error


def _ancestry(folder: str) -> tuple[tuple[int, int], ...]:
    stat = os.stat(folder)
    return ((stat.st_dev, stat.st_ino),)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: listed as a file, it ends in the ledger when it cannot be read
        return False


def _times(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        stat = entry.stat()
    except OSError:  # a dangling link, as above
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _size(entry: os.DirEntry[str]) -> int:
    return _times(entry)[0]
