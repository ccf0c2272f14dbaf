"""The lists of a scan: ledger.csv, images that cannot be used, and leaks.csv, images that two sets have."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from noisystudent.config import DataConfig
from noisystudent.data.scan import Scan
from noisystudent.data.splits import Leak
from noisystudent.errors import InputError
from noisystudent.run.files import atomic, csv_lines

# What happens to the images of a leak, by its reason; {} is the other set.
_NOTES = {
    "copy": "removed, copies of images in {}",
    "near copy": "removed, near copies of images in {}",
    "copy kept": "are copies of others in {}; they stay, and each counts",
    "near copy kept": "are near copies of images in {}; they stay",
    "other label": "have a copy with another label; they stay in training",
}
_MANY = 0.05  # a larger share of the pool is seldom copies of held-out images
_IDS = 4096  # ids that are read into memory at once


def where(path: Path, kept: bool) -> str:
    """Clause of a message: where a list is, or how to keep it if its folder is temporary."""
    return f"all are in {path}" if kept else "give --out FOLDER to keep the list"


def write_ledger(path: Path, scans: dict[str, Scan], max_bad_fraction: float, *, kept: bool = True) -> None:
    """Write ledger.csv, then check it, so that the user can read it if the run stops.

    Raises:
        InputError: a set has too many bad images, or only bad ones. Images of a shard are lost, and
            `max_bad_fraction` is not above its default: nobody knows how many they are, and a later call
            may reach them.
    """
    default = DataConfig().max_bad_fraction
    rows = ((name, *entry) for name, scanned in scans.items() for entry in scanned.bad)
    _write_csv(path, ("set", "id", "reason"), rows)
    for name, scanned in scans.items():
        bad = len(scanned.bad)
        if bad > max_bad_fraction * scanned.listed or (bad and bad == scanned.listed):
            first, reason = scanned.bad[0]
            raise InputError(
                f"{name}: {bad} of {scanned.listed} images cannot be read, more than data.max_bad_fraction "
                f"{max_bad_fraction}; the first is {first} ({reason}); {where(path, kept)}"
            )
        if scanned.lost and max_bad_fraction <= default:
            shard, reason = scanned.lost[0]
            raise InputError(
                f"{name}: shards have lost images, or a store does not give them; the first is {shard}"
                f" ({reason}); copy it again or run again, or give data.max_bad_fraction above {default}"
                f" to do without them; {where(path, kept)}"
            )


def bad_notes(scans: dict[str, Scan]) -> list[str]:
    """A note for the user for each set with unusable images."""
    return [
        f"{name}: {len(scanned.bad)} of {scanned.listed} images cannot be read and are left out (ledger.csv)"
        for name, scanned in scans.items()
        if scanned.bad
    ]


def leak_notes(leaks: list[Leak], scans: dict[str, Scan]) -> list[str]:
    """A note for the user for each leak, and a warning if much of the pool is near held-out images."""
    notes = [
        f"{leak.name}: {len(leak.rows)} images {_NOTES[leak.reason].format(leak.other)} (see leaks.csv)"
        for leak in leaks
    ]
    near = sum(
        len(leak.rows)
        for leak in leaks
        if leak.name == "pool" and leak.other != "pool" and leak.reason == "near copy"
    )
    if near and near > _MANY * (count := len(scans["pool"].index)):
        notes.append(
            f"warning: pool: {near:,} of {count:,} images are removed as near copies of images in test or"
            " val; look at some pairs of leaks.csv, and give --data.near_duplicates off if they are no copies"
        )
    return notes


def write_leaks(path: Path, scans: dict[str, Scan], leaks: list[Leak]) -> None:
    """Write leaks.csv: a row for each image of each leak, with the image it is a copy of."""
    header = ("set", "id", "found_in", "id_there", "reason", "distance")
    _write_csv(path, header, _leak_rows(scans, leaks))


def _leak_rows(scans: dict[str, Scan], leaks: list[Leak]) -> Iterator[tuple[str, ...]]:
    for leak in leaks:
        here, there = scans[leak.scan].index, scans[leak.other_scan].index
        for start in range(0, len(leak.rows), _IDS):
            part = slice(start, start + _IDS)
            ids, others = here.ids(leak.rows[part]), there.ids(leak.other_rows[part])
            distances = ["0"] * len(ids) if leak.distances is None else map(str, leak.distances[part])
            for one, other, distance in zip(ids, others, distances, strict=True):
                yield leak.name, one, leak.other, other, leak.reason, distance


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> None:
    with atomic(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.writelines(csv_lines(chain([header], rows)))
