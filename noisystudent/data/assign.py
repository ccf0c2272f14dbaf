"""Which scanned image ends in which set: classes, the val split, and what the sets may not share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisystudent.data.scan import Scan
from noisystudent.data.splits import Hashes, class_names, conflicting, earlier_copy, find, split_val
from noisystudent.errors import InputError

Rows = NDArray[np.int64]
Members = dict[str, tuple[str, Rows]]
"""Set name to (scan its images were found in, rows of that scan, ascending)."""

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
    hashes = {name: scanned.index.full("content_hash") for name, scanned in scans.items()}
    members: Members = {}
    leaks: list[Leak] = []
    for name in ("test", "val", "labeled"):
        if name in scans:
            members[name] = name, _unshared(name, members, hashes, leaks)
    rows = members["labeled"][1]
    labels = label_map(scans["labeled"].names, classes)[scans["labeled"].index.full("label")].astype(np.int64)
    notes = _conflict_notes(conflicting(hashes["labeled"][rows], labels[rows]))
    if "val" not in scans and len(rows):
        chosen = split_val(hashes["labeled"][rows], labels[rows], val_fraction, seed)
        members |= {"val": ("labeled", rows[chosen]), "labeled": ("labeled", rows[~chosen])}
        notes.append(f"val: {int(chosen.sum())} of {len(rows)} labelled images split off, stratified")
    members["pool"] = _pool(members, hashes, leaks)
    notes += [
        f"{leak.name}: {len(leak.rows)} images removed, also in {leak.other} (leaks.csv)" for leak in leaks
    ]
    return members, leaks, notes


def require_images(members: Members, scans: dict[str, Scan], leaks: Path) -> None:
    """Stop when a set that was given has lost every image to another.

    Raises:
        InputError: naming the set and the file that says why.
    """
    for name, (_, rows) in members.items():
        if len(rows) == 0 and (name != "pool" or "pool" in scans):
            raise InputError(f"{name}: every image is also in another set; {leaks} says which")


def _pool(members: Members, hashes: dict[str, Hashes], leaks: list[Leak]) -> tuple[str, Rows]:
    """The pool without what val and test hold, each content once; without a pool, no row of the labels."""
    if "pool" not in hashes:
        return "labeled", np.empty(0, np.int64)
    held_out: Members = {name: members[name] for name in ("test", "val") if name in members}
    rows = _unshared("pool", held_out, hashes, leaks)
    copy = earlier_copy(hashes["pool"][rows])
    again = copy >= 0
    _add(leaks, Leak("pool", "pool", rows[again], "pool", "pool", rows[copy[again]]))
    return "pool", rows[~again]


def _unshared(name: str, others: Members, hashes: dict[str, Hashes], leaks: list[Leak]) -> Rows:
    """Rows of scan `name` whose bytes are in none of the other sets."""
    rows = np.arange(len(hashes[name]))
    for other, (other_scan, other_rows) in others.items():
        at = find(hashes[name][rows], hashes[other_scan][other_rows])
        shared = at >= 0
        _add(leaks, Leak(name, name, rows[shared], other, other_scan, other_rows[at[shared]]))
        rows = rows[~shared]
    return rows


def _add(leaks: list[Leak], leak: Leak) -> None:
    if len(leak.rows):
        leaks.append(leak)


def _conflict_notes(conflict: NDArray[np.bool_]) -> list[str]:
    if not conflict.any():
        return []
    return [f"labeled: {int(conflict.sum())} images have a copy under another label; they stay in training"]


def _present(scanned: Scan) -> set[str]:
    numbers = np.unique(scanned.index.full("label"))
    return {scanned.names[number] for number in numbers if number >= 0}


def _few(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(map(repr, names[:_NAMED]))
    return shown + (", …" if len(names) > _NAMED else "")
