"""Lists of all images of a set, written to a file before any image is decoded.

The file keeps memory constant: it does not grow with the number of images.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data.index import Index, writer
from noisystudent.data.sources import Item, Source, Sources
from noisystudent.errors import InputError

_BATCH = 4096  # items in memory at once; an item takes half a kilobyte
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.int32()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Listing:
    """All images of a set, before decoding.

    Attributes:
        index: id, label and place of each image, on disk.
        names: label names in the order of their first occurrence. A label of `index` is a position in them.
            All have the composed Unicode form (NFC): systems differ in the form in which they store a name.
        bad: (id, reason) of files whose name cannot be used.
    """

    index: Index
    names: list[str]
    bad: list[tuple[str, str]]


def list_sets(sources: Sources, folder: Path, config: DataConfig, progress: Progress) -> dict[str, Listing]:
    """List the images of every set in a file of the new folder `folder`.

    A folder source computes its fingerprint while it is listed, so that its files are visited only once.

    Raises:
        InputError: the labelled images have fewer than two classes.
        Stopped: a signal came.
    """
    folder.mkdir(parents=True)
    listings: dict[str, Listing] = {}
    for name, source in sources.named():
        # A pool may have a million folders, and each name is kept in memory. Only class names can be truth.
        known = frozenset(listings["labeled"].names) if name == "pool" and not config.pool_tags else None
        listings[name] = list_items(source, folder / f"{name}.listing", progress, known)
        if name == "labeled":
            _require_classes(listings[name].names, source.name)
    return listings


def list_items(
    source: Source, path: Path, progress: Progress, known: frozenset[str] | None = None
) -> Listing:
    """Write all items of a source to an Arrow file.

    Args:
        source: the source.
        path: the new file.
        progress: a signal stops the listing between two batches of items.
        known: labels to keep; any other label becomes -1 (unknown). None: all labels are kept.

    Raises:
        Stopped: a signal came.
    """
    codes: dict[str, int] = {}
    bad: list[tuple[str, str]] = []
    items = source.items()
    with writer(path, _SCHEMA) as append:
        while batch := list(islice(items, _BATCH)):
            progress.check()
            good = [item for item in batch if _is_utf8(item, bad)]
            labels = [_code(item.label, codes, known) for item in good]
            places = ([getattr(item, name) for item in good] for name in Item._fields[2:])
            columns = [[item.id for item in good], labels, *places]
            # the cast gives empty columns, whose type pa.array cannot infer, the type of the schema
            append(pa.RecordBatch.from_arrays(list(map(pa.array, columns)), _SCHEMA.names).cast(_SCHEMA))
    return Listing(Index(path), list(codes), bad)


def _require_classes(names: list[str], source: str) -> None:
    if len(names) < 2:
        only = f"only class {names[0]!r}" if names else "no class"
        raise InputError(f"data.labeled: {source} holds {only}; at least two classes are needed")


def _code(label: str | None, codes: dict[str, int], known: frozenset[str] | None) -> int:
    """Number of a label, -1 if it is unknown. A new label gets the next number and is added to `codes`."""
    name = None if label is None else unicodedata.normalize("NFC", label)
    if name is None or (known is not None and name not in known):
        return -1
    return codes.setdefault(name, len(codes))


def _is_utf8(item: Item, bad: list[tuple[str, str]]) -> bool:
    """True if Arrow can store the id; otherwise the item is added to `bad`."""
    try:
        item.id.encode()  # os.scandir marks other bytes with surrogates, which UTF-8 cannot encode
    except UnicodeEncodeError:
        bad.append((ascii(item.id), "file name is not UTF-8"))
        return False
    return True
