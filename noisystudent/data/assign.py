"""Which scanned image ends in which set: classes, the val split, and what the sets may not share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisystudent.data.contents import Contents, Mask, Rows
from noisystudent.data.index import Index
from noisystudent.data.scan import Scan
from noisystudent.data.splits import class_names, conflicting, split_val
from noisystudent.errors import InputError

Members = dict[str, tuple[str, Mask]]
"""Set name to (scan its images were found in, which rows of that scan)."""

_NAMED = 5


@dataclass(frozen=True)
class Leak:
    """Images removed from set `name`: rows of `scan`, and the rows of `other_scan` (set `other`) alike."""

    name: str
    scan: str
    rows: Rows
    other: str
    other_scan: str
    other_rows: Rows


def classes_of(scans: dict[str, Scan]) -> tuple[tuple[str, ...], list[str]]:
    """The classes of the labelled images that can be read, and notes on those lost or missing in val.

    Raises:
        InputError: fewer than two, or a class of val or test that the labels lack.
    """
    labeled = scans["labeled"]
    seen = _present(labeled)
    lost = [name for name in labeled.names if name not in seen]
    notes = [f"labeled: no image of class {name!r} can be read; the class is left out" for name in lost]
    classes = class_names(sorted(seen))
    if len(classes) < 2:
        raise InputError(
            f"data.labeled: only class {classes[0]!r} can be read; at least two classes are needed"
        )
    for name in ("val", "test"):
        if name in scans:
            present = _present(scans[name])
            if unknown := sorted(present - set(classes)):
                raise InputError(
                    f"data.{name}: class {unknown[0]!r} is not a class of data.labeled ({_few(classes)})"
                )
            if missing := [label for label in classes if label not in present]:
                notes.append(f"{name}: no image of {len(missing)} classes ({_few(missing)})")
    return classes, notes


def label_map(names: list[str], classes: tuple[str, ...]) -> NDArray[np.int32]:
    """(len(names) + 1,) class number of each label number of a scan; the last entry serves -1."""
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([*(numbers.get(name, -1) for name in names), -1], np.int32)


def assign(
    scans: dict[str, Scan], classes: tuple[str, ...], val_fraction: float, seed: int
) -> tuple[Members, list[Leak], list[str]]:
    """Give every image to one set: test keeps all of its own, then val, then labeled, then the pool.

    Returns:
        The rows of each set, what was removed from where, and notes for the user.

    Raises:
        InputError: there is no val and none can be split off.
    """
    members: Members = {}
    held: dict[str, Contents] = {}  # what no other set may have
    leaks: list[Leak] = []
    for name in ("test", "val", "labeled"):
        if name in scans:
            members[name] = name, _unshared(name, scans[name].index, held, members, leaks)
            if name != "labeled":
                held[name] = Contents(scans[name].index, members[name][1])
    rows = np.flatnonzero(members["labeled"][1])
    hashes = scans["labeled"].index.take("content_hash", rows)
    labels = label_map(scans["labeled"].names, classes)[scans["labeled"].index.take("label", rows)]
    notes = _conflict_notes(conflicting(hashes, labels))
    if "val" not in scans and len(rows):
        chosen = split_val(hashes, labels, val_fraction, seed)
        for name, mine in (("val", rows[chosen]), ("labeled", rows[~chosen])):
            members[name] = "labeled", _mask(mine, len(scans["labeled"].index))
        held["val"] = Contents(scans["labeled"].index, members["val"][1])
        notes.append(f"val: {int(chosen.sum())} of {len(rows)} labelled images split off, stratified")
    if "pool" in scans:
        members["pool"] = "pool", _pool(scans["pool"].index, held, members, leaks)
    else:
        members["pool"] = "labeled", np.zeros(len(scans["labeled"].index), np.bool_)
    notes += [
        f"{leak.name}: {len(leak.rows)} images removed, also in {leak.other} (leaks.csv)" for leak in leaks
    ]
    return members, leaks, notes


def require_images(members: Members, scans: dict[str, Scan], classes: tuple[str, ...], leaks: Path) -> None:
    """Stop when a set that was given, or a class of the labels, has lost every image to another set.

    Raises:
        InputError: naming it and the file that says why.
    """
    for name, (_, mask) in members.items():
        if not mask.any() and (name != "pool" or "pool" in scans):
            raise InputError(f"{name}: every image is also in another set; {leaks} says which")
    labeled = scans["labeled"]
    kept = labeled.index.take("label", np.flatnonzero(members["labeled"][1]))
    left = np.bincount(label_map(labeled.names, classes)[kept], minlength=len(classes))
    if lost := [name for name, count in zip(classes, left, strict=True) if count == 0]:
        raise InputError(
            f"labeled: every image of {len(lost)} classes ({_few(lost)}) is also in val or test;"
            f" {leaks} says which"
        )


def _pool(index: Index, held: dict[str, Contents], members: Members, leaks: list[Leak]) -> Mask:
    """The pool without what val and test hold, each content once."""
    mask = _unshared("pool", index, held, members, leaks)
    rows, first = Contents(index, mask).copies()
    mask[rows] = False
    _add(leaks, Leak("pool", "pool", rows, "pool", "pool", first))
    return mask


def _unshared(
    name: str, index: Index, held: dict[str, Contents], members: Members, leaks: list[Leak]
) -> Mask:
    """Rows of scan `name` whose bytes are in none of the sets that are held apart."""
    mask = np.ones(len(index), np.bool_)
    for other, contents in held.items():
        mine, theirs = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start, hashes in index.parts("content_hash"):
            rows = np.flatnonzero(mask[start : start + len(hashes)])
            at = contents.first(hashes[rows])
            mine.append(start + rows[at >= 0])
            theirs.append(at[at >= 0])
        leak = Leak(name, name, np.concatenate(mine), other, members[other][0], np.concatenate(theirs))
        mask[leak.rows] = False
        _add(leaks, leak)
    return mask


def _mask(rows: Rows, length: int) -> Mask:
    mask = np.zeros(length, np.bool_)
    mask[rows] = True
    return mask


def _add(leaks: list[Leak], leak: Leak) -> None:
    if len(leak.rows):
        leaks.append(leak)


def _conflict_notes(conflict: NDArray[np.bool_]) -> list[str]:
    if not conflict.any():
        return []
    return [f"labeled: {int(conflict.sum())} images have a copy under another label; they stay in training"]


def _present(scanned: Scan) -> set[str]:
    numbers = {int(number) for _, part in scanned.index.parts("label") for number in np.unique(part)}
    return {scanned.names[number] for number in numbers - {-1}}


def _few(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(map(repr, names[:_NAMED]))
    return shown + (", …" if len(names) > _NAMED else "")
