"""Several processes share the parts of a pool out, and each part has the bytes that one process gives it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from labeled_pool import contents, random_pool
from processes import together

from noisystudent.distributed import group
from noisystudent.pseudo_label.parts import check_parts
from noisystudent.run.rundir import LabelsDir

IMAGES, PART, BATCH = 95, 12, 4  # 8 parts, of `CONFIG`


def label(out: Path, die: Callable[[int], bool] = lambda rank: False, batches: int = 0) -> int | None:
    """Label the pool, and return the batches of this process; None if it was killed before one of them."""
    pool = random_pool(IMAGES)

    def before(call: int) -> None:
        if call == batches and die(group().rank):
            raise KeyboardInterrupt

    pool.before_call = before
    try:
        check_parts(pool.label(out))
    except KeyboardInterrupt:
        return None
    return pool.calls


def everyone(_rank: int) -> bool:
    return True


@pytest.mark.parametrize("size", [2, 3])
def test_parts_are_shared_out_and_have_the_same_bytes(tmp_path: Path, size: int) -> None:
    whole = contents(random_pool(IMAGES).label(tmp_path / "one"))
    calls = together(size, partial(label, tmp_path / "several"))
    files = {path.name: path.read_bytes() for path in (tmp_path / "several").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert len(whole) == 8
    assert None not in calls and sum(filter(None, calls)) == -(-IMAGES // BATCH), "no batch twice"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_parts_of_a_killed_labelling_are_kept_whoever_made_them(tmp_path: Path, size: int) -> None:
    whole = contents(random_pool(IMAGES).label(tmp_path / "one"))
    # Each of two processes has made two parts, of three batches, and is killed in its third.
    assert together(2, partial(label, tmp_path / "cut", everyone, 7)) == [None, None]
    assert len(LabelsDir(tmp_path / "cut").parts()) == 4
    calls = together(size, partial(label, tmp_path / "cut"))
    assert sum(call or 0 for call in calls) == -(-IMAGES // BATCH) - 4 * PART // BATCH
    assert {path.name: path.read_bytes() for path in LabelsDir(tmp_path / "cut").parts()} == whole
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {*whole, "parts.json"}


def test_indices_are_found_while_another_process_deletes_what_is_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has written parts.json before."""
    folder, scandir = LabelsDir(tmp_path), os.scandir
    (folder.shared / "other").mkdir(parents=True)
    (folder.shared / "other" / "parts.json").touch()
    assert folder.indices() == [folder.shared / "other" / "parts.json"]

    def late(path: str | Path) -> object:
        if Path(path) == folder.shared and folder.shared.exists():
            monkeypatch.setattr(os, "scandir", scandir)
            folder.index.touch()
            shutil.rmtree(folder.shared)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", late)
    assert folder.indices() == [folder.index]
    assert not folder.shared.exists()
