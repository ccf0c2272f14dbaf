"""The search for copies compares whole hashes and needs little memory."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import labeled_folder, make, table

from noisystudent.data import duplicates, index
from noisystudent.data.duplicates import Contents
from noisystudent.data.index import HASH_BYTES, SCHEMA, Index, record_batch, writer


def hashes(numbers: list[int]) -> np.ndarray:
    """(n, 16) a hash for each number. Many hashes have the same first half, of which keys are made."""
    values = np.zeros((len(numbers), HASH_BYTES), np.uint8)
    values[:, 7:11] = np.array(numbers, np.int32).view(np.uint8).reshape(-1, 4)
    return values


def written(path: Path, contents: np.ndarray) -> Index:
    """An index with the given content hashes."""
    zeros = {name: np.zeros(len(contents), np.int64) for name in SCHEMA.names}
    with writer(path, SCHEMA) as append:
        for start in range(0, max(len(contents), 1), 1000):
            part = {name: column[start : start + 1000] for name, column in zeros.items()}
            ids = [""] * len(part["id"])
            append(record_batch(part | {"id": ids, "content_hash": contents[start : start + 1000]}))
    return Index(path)


numbers = st.lists(st.sampled_from([0, 1, 2, 255, 256, 257, 512, 2**20, 2**30]), max_size=30)


@settings(max_examples=60, deadline=None)
@given(queries=numbers, stored=numbers, data=st.data())
def test_first_is_the_first_copy_among_the_members(tmp_path_factory, queries, stored, data) -> None:  # type: ignore[no-untyped-def]
    members = np.array([data.draw(st.booleans()) for _ in stored], np.bool_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "BATCH_ROWS", 7)  # several batches
        patch.setattr(duplicates, "_AT_ONCE", 5)
        contents = Contents(written(tmp_path_factory.getbasetemp() / "index.arrow", hashes(stored)), members)
        first: dict[int, int] = {}
        copies = []
        for row, number in enumerate(stored):
            if members[row] and first.setdefault(number, row) != row:
                copies.append((row, first[number]))
        assert contents.first(hashes(queries)).tolist() == [first.get(number, -1) for number in queries]
        rows, firsts = contents.copies()
        assert list(zip(rows.tolist(), firsts.tolist(), strict=True)) == copies


def test_a_search_for_copies_takes_few_bytes_per_image(tmp_path: Path) -> None:
    count = 400_000
    contents = np.random.default_rng(0).integers(0, 256, (count, HASH_BYTES), dtype=np.uint8)
    contents[5000], contents[399_999] = contents[7], contents[7]
    searched = written(tmp_path / "index.arrow", contents)
    tracemalloc.start()
    rows, first = Contents(searched, np.ones(count, np.bool_)).copies()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (rows.tolist(), first.tolist()) == ([5000, 399_999], [7, 7])
    assert peak < 20 * count, f"{peak / count:.0f} bytes per image"


def test_copies_with_two_labels_are_written_down_by_name(tmp_path: Path) -> None:
    labeled = labeled_folder(tmp_path / "labeled", 30)
    first, second = sorted(labeled.rglob("*.png"))[:2]
    other = next(folder for folder in sorted(labeled.iterdir()) if folder != first.parent)
    shutil.copy(first, other / "copy.png")
    shutil.copy(first, other / "copy-2.png")
    shutil.copy(second, second.with_name("same-label.png"))
    data = make(tmp_path / "out", labeled=(str(labeled),))
    rows = {row["id"]: row for row in table(tmp_path / "out" / "leaks.csv")}
    name, copy = f"{first.parent.name}/{first.name}", f"{other.name}/copy.png"
    named = {name: copy, copy: name, f"{other.name}/copy-2.png": name}
    by_label = {key: row["id_there"] for key, row in rows.items() if row["reason"] == "other label"}
    assert by_label in (named, named | {name: f"{other.name}/copy-2.png"})
    assert {row["reason"] for key, row in rows.items() if key not in named} <= {"copy"}
    assert named.keys() <= set(data.labeled.ids(np.arange(len(data.labeled)))), "they stay"
