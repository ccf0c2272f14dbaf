"""A source of image files in folders: `<class>/<image>` for labelled sets, any nesting for the pool."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from noisystudent.data.sources.base import Digest, Item, Skipped, digest, read_image_file
from noisystudent.errors import InputError

_MOST_VISITS = 100  # of one folder through symbolic links


class FolderSource:
    """A folder of image files. The id of an image is its path relative to the folder.

    The label of an image is, in a labelled set, the first folder of its path, and in a pool the folder that
    directly contains it. Symbolic links are followed, except a link to a folder that contains the link. A
    FIFO, a socket or a device with the name of an image is listed, and cannot be read.

    Raises:
        InputError: the folder has no images, or a labelled folder has no class folders. A folder cannot be
            listed, or many paths of symbolic links lead to it.
    """

    shards = 1
    decoded = False

    def __init__(self, root: Path, labeled: bool) -> None:
        self.name = str(root)
        self._root = str(root)
        self._labeled = labeled
        self._skipped = Skipped(Counter())
        self._notes = self._check()
        self._length: int | None = None
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        """Number of image files."""
        if self._length is None:
            self._length = sum(1 for _ in self._walk())
        return self._length

    def items(self) -> Iterator[Item]:
        """Image files in the order of their names, folder by folder.

        The fingerprint is computed at the same time, so that the folders are visited only once.
        """
        self._skipped.counts.clear()
        count, digest = 0, Digest()
        for path, entry in self._walk():
            size, time = _size_and_time(entry)
            digest.add((path, size, time))
            count += 1
            yield Item(path, self._label(path), 0, 0, size)
        self._length, self._fingerprint = count, digest.hex()

    def read(self, _shard: int, _offset: int, _size: int, name: str, /) -> bytes:
        """Bytes of one file."""
        return read_image_file(os.path.join(self._root, name))

    def fingerprint(self) -> str:
        """Hash of (path, bytes, mtime) of every image file.

        The first call after `items` returns the hash of that listing; any other call visits all files.
        """
        # used once only: files may have changed by the next call
        listed, self._fingerprint = self._fingerprint, None
        return listed or digest((path, *_size_and_time(entry)) for path, entry in self._walk())

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """Empty class folders, files beside class folders, unknown suffixes."""
        return self._notes + self._skipped.notes(self.name)

    def _label(self, path: str) -> str:
        if self._labeled:
            return path.split("/", 1)[0]
        return os.path.basename(os.path.dirname(os.path.join(self._root, path)))

    def _walk(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Image files as (relative path, entry); in a labelled set, only those in class folders."""
        for path, entry in _files(self._root, "", ()):
            if (not self._labeled or "/" in path) and self._skipped.is_image(path):
                yield path, entry

    def _check(self) -> tuple[str, ...]:
        """Check that there are images and, for a labelled set, class folders; return the notes.

        Only the first image of each class folder is searched for, so that a large set opens fast.
        """
        if not self._labeled:
            if next(self._walk(), None) is None:
                raise InputError(f"{self.name}: no images in this folder")
            return ()
        entries = _listing(self._root)
        folders = [entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith(".")]
        if not folders:
            raise InputError(f"{self.name}: no class folders; labelled images lie in <class>/<image>")
        empty = [name for name in folders if not self._holds_image(name)]
        if len(empty) == len(folders):
            raise InputError(f"{self.name}: no images in its {len(folders)} class folders")
        beside = [entry.name for entry in entries if not _is_folder(entry)]  # hidden ones too
        notes = [f"{self.name}: class folder {name!r} holds no image and is left out" for name in empty]
        if beside:
            count = f"{len(beside):,}, the first is {beside[0]!r}"
            notes.append(f"{self.name}: files beside the class folders are left out: {count}")
        return tuple(notes)

    def _holds_image(self, folder: str) -> bool:
        files = _files(os.path.join(self._root, folder), folder + "/", (_inode(self._root),))
        return any(self._skipped.is_image(path) for path, _ in files)


def _files(
    folder: str, prefix: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Files in `folder` and its subfolders as (path, entry), in the order of their names.

    Args:
        folder: the folder.
        prefix: put before each path, which is relative to `folder` and has "/" between names.
        above: (device, inode) of the folders that contain `folder`.

    Raises:
        InputError: a folder cannot be listed, or more than `_MOST_VISITS` paths of symbolic links lead to it.
    """
    visits: Counter[tuple[int, int]] = Counter()  # of folders below a link only: a pool has many others
    inodes, opened = list(above), [(prefix, False, iter(_listing(folder)))]
    inodes.append(_inode(folder))
    while opened:
        prefix, linked, entries = opened[-1]
        entry = next(entries, None)
        if entry is None:
            opened.pop()
            inodes.pop()
        elif entry.name.startswith("."):
            continue
        elif not _is_folder(entry):
            yield prefix + entry.name, entry
        elif (here := _inode(entry.path)) not in inodes:  # else a link back to a folder above
            below_link = linked or entry.is_symlink()
            if below_link:
                visits[here] += 1
                if visits[here] > _MOST_VISITS:
                    raise InputError(
                        f"{entry.path}: more than {_MOST_VISITS} paths of symbolic links lead to this folder;"
                        " remove some of the links"
                    )
            opened.append((f"{prefix}{entry.name}/", below_link, iter(_listing(entry.path))))
            inodes.append(here)


def _listing(folder: str) -> list[os.DirEntry[str]]:
    """Entries of a folder, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from error


def _inode(folder: str) -> tuple[int, int]:
    """(device, inode) of a folder."""
    try:
        stat = os.stat(folder)
    except OSError as error:  # such as a path of more than 4,096 bytes
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from error
    return stat.st_dev, stat.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: listed as a file, so that it appears in the ledger as unreadable
        return False


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
    """(bytes, mtime in ns) of a file."""
    try:
        stat = entry.stat()
    except OSError:  # a link to a missing file: it also appears in the ledger
        return -1, -1
    return stat.st_size, stat.st_mtime_ns
