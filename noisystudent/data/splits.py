"""Assignment of the scanned images to sets: classes, the val split, and images that are in two sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from noisystudent.data.duplicates import Contents, Hashes, Mask, Rows, keys_of, unique_contents
from noisystudent.data.index import Index
from noisystudent.data.scan import Scan
from noisystudent.errors import InputError
from noisystudent.runtime import generator

Members = dict[str, tuple[str, Mask]]
"""For each set: the name of the scan that has its images, and a mask of the rows of that scan.

The scan has another name than the set only if val is split off the labelled images.
"""

_NAMED = 5  # names that a message lists at most


@dataclass(frozen=True)
class Leak:
    """Images of a set whose content another set, or the set itself, has too, exactly or nearly.

    Attributes:
        name: the set of the images.
        scan: name of its scan.
        rows: (n,) rows of that scan.
        other: the set that keeps the content.
        other_scan: name of the scan of that set.
        other_rows: (n,) rows of `other_scan` with this content.
        reason: copy, near copy: the rows are removed from the set. The others stay.
        distances: (n,) bits of 256 in which the hashes of near copies differ. None: the contents are equal.
    """

    name: str
    scan: str
    rows: Rows
    other: str
    other_scan: str
    other_rows: Rows
    reason: Literal["copy", "copy kept", "other label", "near copy", "near copy kept"] = "copy"
    distances: NDArray[np.int32] | None = None


def classes_of(scans: dict[str, Scan]) -> tuple[tuple[str, ...], list[str]]:
    """Classes of the labelled images, and notes for the user.

    A class counts if at least one of its labelled images can be read. The notes name classes that do not
    count, and classes without images in val or test.

    Raises:
        InputError: fewer than two classes, or val or test has a class that the labelled images lack.
    """
    labeled = scans["labeled"]
    readable = _present(labeled)
    lost = [name for name in labeled.names if name not in readable]
    notes = [f"labeled: no image of class {name!r} can be read; the class is left out" for name in lost]
    classes = class_names(sorted(readable))
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
    """(len(names) + 1,) class number of each label number of a scan, -1 if it is not a class.

    The last entry is -1, so that indexing with label -1 (unknown) also returns -1.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([*(numbers.get(name, -1) for name in names), -1], np.int32)


def assign(
    scans: dict[str, Scan], classes: tuple[str, ...], val_fraction: float, seed: int
) -> tuple[Members, list[Leak], list[str]]:
    """Decide which images each set keeps.

    Test keeps all of its images. Val loses the images of test, the labelled images those of test and val, and
    the pool those of all other sets: an image that has a label needs no pseudo-label. Without val images, val
    is split off the labelled images.

    Returns:
        The members of each set, the leaks, and other notes for the user.

    Raises:
        InputError: there is no val and none can be split off.
    """
    members: Members = {}
    held_out: dict[str, Contents] = {}  # contents of the sets so far, which no later set may have
    leaks: list[Leak] = []
    # In the order of priority: a set loses images to the sets before it. Test comes first, so that its score
    # does not depend on the other sets that the user gives.
    for name in ("test", "val", "labeled"):
        if name in scans:
            members[name] = name, _unshared(name, scans[name].index, held_out, members, leaks)
            if name != "labeled":
                held_out[name] = Contents(scans[name].index, members[name][1])
                repeated, first = held_out[name].copies()
                _add(leaks, Leak(name, name, repeated, name, name, first, "copy kept"))
    rows = np.flatnonzero(members["labeled"][1])
    hashes = scans["labeled"].index.take("content_hash", rows)
    labels = label_map(scans["labeled"].names, classes)[scans["labeled"].index.take("label", rows)]
    others, notes = counterparts(hashes, labels), list[str]()
    mixed, name = others >= 0, "labeled"
    _add(leaks, Leak(name, name, rows[mixed], name, name, rows[others[mixed]], "other label"))
    if "val" not in scans and len(rows):
        # Both sets keep the scan, and the decoded pixels, of the labelled images.
        chosen = split_val(hashes, labels, val_fraction, seed)
        for name, part in (("val", rows[chosen]), ("labeled", rows[~chosen])):
            members[name] = "labeled", _mask(part, len(scans["labeled"].index))
        held_out["val"] = Contents(scans["labeled"].index, members["val"][1])
        notes.append(f"val: {int(chosen.sum())} of {len(rows)} labelled images split off, stratified")
    held_out["labeled"] = Contents(scans["labeled"].index, members["labeled"][1])
    if "pool" in scans:
        members["pool"] = "pool", _pool(scans["pool"].index, held_out, members, leaks)
    else:  # an empty pool, whose rows refer to some scan
        members["pool"] = "labeled", np.zeros(len(scans["labeled"].index), np.bool_)
    return members, leaks, notes


def require_images(
    members: Members, leaks: list[Leak], scans: dict[str, Scan], classes: tuple[str, ...], where: str
) -> None:
    """Check that each set of the user, and each class of the labelled images, has kept at least one image.

    Args:
        members: the images of each set.
        leaks: the images that were removed from them.
        scans: the scans.
        classes: class names of the run.
        where: clause of the message that says where leaks.csv is.

    Raises:
        InputError: a set or a class has lost all its images to other sets.
    """
    for name, (_, mask) in members.items():
        if not mask.any() and (name != "pool" or "pool" in scans):
            near = sum(len(leak.rows) for leak in leaks if (leak.name, leak.reason) == (name, "near copy"))
            if near:
                raise InputError(
                    f"{name}: no image is left, {near} are near copies of images in other sets; if they are"
                    f" no copies, give --data.near_duplicates off; {where}"
                )
            raise InputError(f"{name}: every image is also in another set; {where}")
    labeled = scans["labeled"]
    kept = labeled.index.take("label", np.flatnonzero(members["labeled"][1]))
    left = np.bincount(label_map(labeled.names, classes)[kept], minlength=len(classes))
    if lost := [name for name, count in zip(classes, left, strict=True) if count == 0]:
        raise InputError(
            f"labeled: every image of {len(lost)} classes ({_few(lost)}) is also in val or test; {where}"
        )


def _pool(index: Index, held_out: dict[str, Contents], members: Members, leaks: list[Leak]) -> Mask:
    """Rows of the pool whose content is in no other set, each content once; adds the others to `leaks`."""
    mask = _unshared("pool", index, held_out, members, leaks)
    rows, first = Contents(index, mask).copies()
    mask[rows] = False
    _add(leaks, Leak("pool", "pool", rows, "pool", "pool", first))
    return mask


def _unshared(
    name: str, index: Index, held_out: dict[str, Contents], members: Members, leaks: list[Leak]
) -> Mask:
    """Rows of scan `name` whose content is in none of the held-out sets; adds the others to `leaks`."""
    mask = np.ones(len(index), np.bool_)
    for other, contents in held_out.items():
        removed, same_as = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start, hashes in index.parts("content_hash"):
            rows = np.flatnonzero(mask[start : start + len(hashes)])
            other_rows = contents.first(hashes[rows])
            removed.append(start + rows[other_rows >= 0])
            same_as.append(other_rows[other_rows >= 0])
        leak = Leak(name, name, np.concatenate(removed), other, members[other][0], np.concatenate(same_as))
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


def _present(scanned: Scan) -> set[str]:
    """Label names that at least one readable image of a scan has."""
    numbers = {int(number) for _, part in scanned.index.parts("label") for number in np.unique(part)}
    return {scanned.names[number] for number in numbers - {-1}}


def _few(names: list[str] | tuple[str, ...]) -> str:
    """The first names in quotes, for a message."""
    return ", ".join(map(repr, names[:_NAMED])) + (", …" if len(names) > _NAMED else "")


def split_val(hashes: Hashes, labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose the labelled images that become val, stratified by class.

    The choice depends on the contents of the images only, not on file names or their order. Each class gives
    `fraction` of its contents, rounded down; classes with the largest remainders give one more until the
    total is right. Every class keeps at least one content for training. Copies of an image stay together. An
    image that occurs with two labels stays in training.

    Args:
        hashes: (N, 16) uint8 content hashes.
        labels: (N,) class numbers.
        fraction: share of the contents that becomes val, between 0 and 1.
        seed: seed of the choice.

    Returns:
        (N,) True for val.

    Raises:
        InputError: each class has only one content.
    """
    free = ~conflicting(hashes, labels)
    # sorted by content, so that the order of the files has no effect
    keys, first = np.unique(keys_of(hashes)[free], return_index=True)
    classes = labels[free][first]
    counts = np.bincount(classes, minlength=int(labels.max()) + 1)
    quota = _quotas(counts, fraction, generator(seed, "split"))
    if quota.sum() == 0:
        raise InputError("data.val is empty and no class has two images to split one off; give --val")
    chosen = [
        keys[classes == number][generator(seed, "split", number).permutation(counts[number])[:share]]
        for number, share in enumerate(quota)
    ]
    return free & np.asarray(np.isin(keys_of(hashes), np.concatenate(chosen)), np.bool_)


def _quotas(counts: NDArray[np.int64], fraction: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """(K,) number of val images of each class, by the method of largest remainders; ties are drawn by `rng`.

    Args:
        counts: (K,) contents of each class. A class gives at most one fewer.
        fraction: share that becomes val. The total is rounded, and at least 1 if a class can give one.
        rng: random generator.
    """
    spare = np.maximum(counts - 1, 0)  # one content of each class stays in training
    exact = counts * fraction
    quota: NDArray[np.int64] = np.minimum(np.floor(exact).astype(np.int64), spare)
    missing = max(1, round(int(counts.sum()) * fraction)) - int(quota.sum())
    # the last key counts first: remainders in descending order, then a random order
    order = np.lexsort((rng.permutation(len(counts)), -(exact - quota)))
    while missing > 0 and (quota < spare).any():  # more than once if some classes have no image left to give
        takers = order[(quota < spare)[order]][:missing]
        quota[takers] += 1
        missing -= len(takers)
    return quota


def conflicting(hashes: Hashes, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) True for images whose content occurs with two different labels."""
    return counterparts(hashes, labels) >= 0


def counterparts(hashes: Hashes, labels: NDArray[np.int64]) -> Rows:
    """(N,) for each image the first one with the same content and another label, -1 if there is none."""
    first, inverse = unique_contents(hashes)
    differs = labels != labels[first][inverse]  # from the label of the first image with this content
    rival = np.full(len(first), -1, np.int64)  # of each content, the first image that differs
    late_to_early = np.flatnonzero(differs)[::-1]
    rival[inverse[late_to_early]] = late_to_early
    return np.where(differs, first[inverse], rival[inverse])


def class_names(names: list[str]) -> tuple[str, ...]:
    """Sorted class names: by number if all are whole numbers, otherwise alphabetically."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
