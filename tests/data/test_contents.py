"""Copies are found by whole contents, whatever their first bytes, in little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisystudent.data import contents, index
from noisystudent.data.contents import Contents
from noisystudent.data.index import HASH_BYTES, SCHEMA, Index, record_batch, writer


def hashes(numbers: list[int]) -> np.ndarray:
    """A hash for each number; many have the same first half, where keys come from."""
    found = np.zeros((len(numbers), HASH_BYTES), np.uint8)
    found[:, 7:11] = np.array(numbers, np.int32).view(np.uint8).reshape(-1, 4)
    return found


def written(path: Path, found: np.ndarray) -> Index:
    zeros = {name: np.zeros(len(found), np.int64) for name in SCHEMA.names}
    with writer(path, SCHEMA) as append:
        for start in range(0, max(len(found), 1), 1000):
            part = {name: column[start : start + 1000] for name, column in zeros.items()}
            ids = [""] * len(part["id"])
            append(record_batch(part | {"id": ids, "content_hash": found[start : start + 1000]}))
    return Index(path)


numbers = st.lists(st.sampled_from([0, 1, 2, 255, 256, 257, 512, 2**20, 2**30]), max_size=30)


@settings(max_examples=60, deadline=None)
@given(mine=numbers, theirs=numbers, data=st.data())
def test_the_first_copy_among_the_members_is_found(tmp_path_factory, mine, theirs, data) -> None:  # type: ignore[no-untyped-def]
    members = np.array([data.draw(st.booleans()) for _ in theirs], np.bool_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "BATCH_ROWS", 7)  # several batches
        patch.setattr(contents, "_AT_ONCE", 5)
        there = Contents(written(tmp_path_factory.getbasetemp() / "index.arrow", hashes(theirs)), members)
        first: dict[int, int] = {}
        copies = []
        for row, number in enumerate(theirs):
            if members[row] and first.setdefault(number, row) != row:
                copies.append((row, first[number]))
        assert there.first(hashes(mine)).tolist() == [first.get(number, -1) for number in mine]
        rows, firsts = there.copies()
        assert list(zip(rows.tolist(), firsts.tolist(), strict=True)) == copies


def test_a_search_for_copies_takes_few_bytes_an_image(tmp_path: Path) -> None:
    count = 400_000
    found = np.random.default_rng(0).integers(0, 256, (count, HASH_BYTES), dtype=np.uint8)
    found[5000], found[399_999] = found[7], found[7]
    there = written(tmp_path / "index.arrow", found)
    tracemalloc.start()
    rows, first = Contents(there, np.ones(count, np.bool_)).copies()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (rows.tolist(), first.tolist()) == ([5000, 399_999], [7, 7])
    assert peak < 20 * count, f"{peak / count:.0f} bytes an image"
