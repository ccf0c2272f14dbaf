"""Several sources as one, whose ids and shard numbers stay different."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisystudent.data.sources.arrays import ArraySource
from noisystudent.data.sources.base import Item, Place, Source, digest, prefetch


class Joined:
    """Several sources as one.

    The shard numbers of a part follow those of the part before. Its ids begin with its prefix.
    """

    def __init__(self, parts: Sequence[Source], prefixes: Sequence[str]) -> None:
        self.name = " + ".join(part.name for part in parts)
        self._parts = parts
        self._prefixes = prefixes
        # (parts + 1,) first shard number of each part, and the number of shards
        self._starts = np.cumsum([0] + [part.shards for part in parts]).tolist()

    @property
    def shards(self) -> int:
        """Number of shards of all parts."""
        return int(self._starts[-1])

    @property
    def decoded(self) -> bool:
        """True if a part is in memory."""
        return any(part.decoded for part in self._parts)

    def __len__(self) -> int:
        """Number of images of all parts."""
        return sum(map(len, self._parts))

    def items(self) -> Iterator[Item]:
        """The images of the first part, then those of the next."""
        for part, prefix, start in zip(self._parts, self._prefixes, self._starts[:-1], strict=True):
            for item in part.items():
                yield item._replace(id=prefix + item.id, shard=start + item.shard)

    def read(self, shard: int, offset: int, size: int, name: str, /) -> bytes | NDArray[np.uint8]:
        """Bytes or pixels of an image, read by its part."""
        part = bisect_right(self._starts, shard) - 1
        part_id = name.removeprefix(self._prefixes[part])
        return self._parts[part].read(shard - self._starts[part], offset, size, part_id)

    def prefetch(self, places: Sequence[Place], /) -> None:
        """See `base.prefetch`."""
        own: dict[int, list[Place]] = {}
        for shard, offset, size, name in places:
            part = bisect_right(self._starts, shard) - 1
            place = (shard - self._starts[part], offset, size, name.removeprefix(self._prefixes[part]))
            own.setdefault(part, []).append(place)
        for part, inside in own.items():
            prefetch(self._parts[part], inside)

    def fingerprint(self) -> str:
        """Hash of the prefixes, and of the fingerprints of the parts."""
        return digest(
            (prefix, part.fingerprint()) for prefix, part in zip(self._prefixes, self._parts, strict=True)
        )

    def notes(self, streamed: bool = False) -> tuple[str, ...]:
        """The notes of all parts."""
        return tuple(note for part in self._parts for note in part.notes(streamed))


def prefixes(specs: Sequence[str | Path | ArraySource]) -> list[str]:
    """What the ids of each spec begin with: nothing if there is one, otherwise its name and a slash.

    The names are those of the files or folders. They are numbered if two are equal, so that ids stay unique.
    """
    if len(specs) == 1:
        return [""]
    names = [spec.name if isinstance(spec, ArraySource) else Path(spec).name for spec in specs]
    unique = len(set(names)) == len(names)
    return [f"{name}/" if unique else f"{number}-{name}/" for number, name in enumerate(names)]
