"""Labels that a person gives in CSV files, for labelled images and for images of the pool.

A file has a column `label` and one or several of the columns `key`, `filepath`, `path` and `id`; the first of
them that is not empty names the image. A key is the id of an image, with the name of its set and a colon
before it if several sets have the id: `pool:cats/1.png`. A path is that of a file in a folder of images. A
label that the image has already changes nothing, nor does an empty one of an image of the pool; so the file
that `review` writes changes nothing until it is edited.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisystudent.data.sources.base import Item, Place, Source, digest, prefetch
from noisystudent.data.sources.joined import Joined, prefixes
from noisystudent.errors import InputError, did_you_mean, first_line

COLUMNS = ("key", "filepath", "path", "id")
"""Columns that name an image; the first that is not empty counts."""

Image = tuple[str, str]
"""(name of the set, id) of an image in the sources that the user gives."""


class _Row(NamedTuple):
    place: str  # file and line, for messages
    name: str
    label: str


def key_of(scan: str, image_id: str) -> str:
    """The key of an image of the set `scan`. That of a labelled image of the pool is its id."""
    return image_id if image_id.startswith("pool:") else f"{scan}:{image_id}"


def file_of(specs: Mapping[str, Sequence[str]], key: str) -> str:
    """Absolute path of the file of an image; empty if it is in a shard or in memory.

    Args:
        specs: the folders and files of each set.
        key: that of `key_of`.
    """
    name, _, image_id = key.partition(":")
    for prefix, folder in zip(prefixes(specs[name]), specs[name], strict=True):
        path = os.path.join(folder, image_id.removeprefix(prefix))
        if image_id.startswith(prefix) and os.path.isfile(path):
            return os.path.abspath(path)
    return ""


def given_labels(
    sets: Mapping[str, Source], specs: Mapping[str, Sequence[str]], files: Sequence[str]
) -> dict[str, Source]:
    """The same sets with the labels of the files.

    Args:
        sets: name of the set -> source; one is `labeled`, and one may be `pool`.
        specs: the folders and files of each set.
        files: the CSV files.

    Raises:
        InputError: a file cannot be read, or a row cannot be used; the message names file and line.
    """
    rows = [row for file in files for row in _rows(Path(file))]
    candidates = [_candidates(row.name, sets, specs) for row in rows]
    wanted = {image for images in candidates for image in images}
    labels, classes = _current(sets, wanted)
    changes: dict[str, dict[str, str | None]] = {name: {} for name in sets}
    seen: dict[Image, _Row] = {}
    for row, images in zip(rows, candidates, strict=True):
        image = _only(row, [one for one in images if one in labels], sets)
        before = seen.setdefault(image, row)
        if before.label != row.label:
            raise InputError(
                f"{row.place}: {row.name} has the label {row.label!r}, and {before.label!r} in"
                f" {before.place}; leave one of them out"
            )
        if row.label and row.label not in classes:
            raise InputError(
                f"{row.place}: label {row.label!r} is no class of data.labeled"
                f"{did_you_mean(row.label, classes)}"
            )
        # An empty label of a pool image is one that nobody has given yet.
        if row.label != (labels[image] if image[0] != "pool" else ""):
            changes[image[0]][image[1]] = row.label or None
    return _changed(sets, changes)


def _changed(
    sets: Mapping[str, Source], changes: Mapping[str, Mapping[str, str | None]]
) -> dict[str, Source]:
    """The sets with changes; a set without any is the same object, with the same fingerprint."""
    changed = {
        name: Edited(source, changes[name]) if changes[name] else source for name, source in sets.items()
    }
    moved = changes.get("pool")
    if moved:
        added = Edited(sets["pool"], moved, others=False)
        changed["labeled"] = Joined([changed["labeled"], added], ["", "pool:"])
        changed["pool"] = _Rest(sets["pool"], dict.fromkeys(moved))
        if len(changed["pool"]) == 0:
            del changed["pool"]
    return changed


class Edited:
    """A source with other labels for some of its images.

    Args:
        source: the source.
        labels: id -> class name; None: the image is left out.
        others: True: all images without an entry stay as they are. False: they are left out.
    """

    def __init__(self, source: Source, labels: Mapping[str, str | None], *, others: bool = True) -> None:
        self.name, self.shards, self.decoded = source.name, source.shards, source.decoded
        self._source, self._labels, self._others = source, dict(labels), others

    def __len__(self) -> int:
        """Number of images that are left."""
        kept = sum(label is not None for label in self._labels.values())
        return kept + (len(self._source) - len(self._labels) if self._others else 0)

    def items(self) -> Iterator[Item]:
        """The images that are left, in the order of the source."""
        for item in self._source.items():
            if item.id not in self._labels:
                if self._others:
                    yield item
            elif (label := self._labels[item.id]) is not None:
                yield item._replace(label=label)

    def read(self, shard: int, offset: int, size: int, name: str, /) -> bytes | NDArray[np.uint8]:
        """Bytes or pixels of an image."""
        return self._source.read(shard, offset, size, name)

    def prefetch(self, places: Sequence[Place], /) -> None:
        """See `base.prefetch`."""
        prefetch(self._source, places)

    def fingerprint(self) -> str:
        """Hash of the labels, and of the whole source: it has none of single images."""
        return digest(
            iter((self._source.fingerprint(), *sorted(self._labels.items(), key=lambda entry: entry[0])))
        )

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """The notes of the source, and the number of changes."""
        kept = sum(label is not None for label in self._labels.values())
        if not self._others:
            return (f"{self.name}: {kept} images of the pool have given labels, and are labelled images now",)
        left_out = len(self._labels) - kept
        return (
            *self._source.notes(streamed),
            f"{self.name}: {kept} images have other labels, and {left_out} are left out, as given",
        )


class _Rest(Edited):
    """The pool without the images that have moved to the labelled ones, whose note has their number."""

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """The notes of the source."""
        return self._source.notes(streamed)


def _rows(file: Path) -> Iterator[_Row]:
    """Rows of a CSV file that name an image."""
    try:
        # utf-8-sig: spreadsheets write a byte order mark
        with file.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream)
            columns = table.fieldnames or ()
            names = [name for name in COLUMNS if name in columns]
            if not names or "label" not in columns:
                raise InputError(
                    f"{file}: has the columns {', '.join(columns) or 'none'}; it must have label, and one of"
                    f" {', '.join(COLUMNS)}"
                )
            for row in table:
                place = f"{file} line {table.line_num}"
                label = unicodedata.normalize("NFC", (row["label"] or "").strip())
                name = next((row[column] for column in names if row[column]), None)
                if name is None:
                    raise InputError(f"{place}: names no image; fill {' or '.join(names)}")
                yield _Row(place, name, label)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise InputError(
            f"{file}: cannot be read as CSV ({reason}); name a UTF-8 file with commas"
        ) from error


def _candidates(name: str, sets: Mapping[str, Source], specs: Mapping[str, Sequence[str]]) -> set[Image]:
    """The images that a key, a path or an id may mean."""
    first, colon, rest = name.partition(":")
    images = {(first, rest)} if colon and first in sets else {(set_name, name) for set_name in sets}
    path = os.path.abspath(name)
    for set_name in sets:
        folders = specs[set_name]
        for prefix, folder in zip(prefixes(folders), folders, strict=True):
            root = os.path.join(os.path.abspath(folder), "")
            if path.startswith(root):
                images.add((set_name, prefix + path.removeprefix(root).replace(os.sep, "/")))
    return images


def _current(sets: Mapping[str, Source], wanted: Collection[Image]) -> tuple[dict[Image, str], set[str]]:
    """The labels of the wanted images that exist, and the classes of the labelled images."""
    labels: dict[Image, str] = {}
    classes: set[str] = set()
    for set_name, source in sets.items():
        for item in source.items():
            label = unicodedata.normalize("NFC", item.label or "")
            if set_name == "labeled":
                classes.add(label)
            if (set_name, item.id) in wanted:
                labels[set_name, item.id] = label
    return labels, classes


def _only(row: _Row, images: Sequence[Image], sets: Mapping[str, Source]) -> Image:
    """The image that a row names.

    Raises:
        InputError: there is none, or several sets have one.
    """
    if not images:
        raise InputError(
            f"{row.place}: no image {row.name!r} in {', '.join(sets)}; give the path of a file in their"
            " folders, or a key that `noisystudent review` wrote"
        )
    if len(images) > 1:
        names = " and ".join(sorted(name for name, _ in images))
        raise InputError(f"{row.place}: {row.name} is in {names}; write {sorted(images)[0][0]}:{row.name}, …")
    return images[0]
