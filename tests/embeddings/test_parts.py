"""Cached features: what is stored, what is computed once, and what a kill or a damaged file costs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from processes import together
from tiny import Counted, Remembered
from torch import Tensor

from noisystudent.console import Progress
from noisystudent.embeddings.embed import embed_images, part_rows
from noisystudent.embeddings.parts import Features, Layout
from noisystudent.errors import RunError
from noisystudent.run.files import new_array
from noisystudent.run.rundir import PartsDir

VIEWS, WIDTH, PART, BATCH = 3, 5, 8, 3
Rows = NDArray[np.int64]


class Killed(BaseException):
    pass


def hashes(contents: Rows) -> NDArray[np.uint8]:
    """A content hash for each number."""
    return np.repeat(contents.astype(np.uint8)[:, None], 16, axis=1)


def copies_of(contents: Rows) -> tuple[Rows, Rows]:
    _, first, inverse = np.unique(contents, return_index=True, return_inverse=True)
    rows = np.flatnonzero(first[inverse] != np.arange(len(contents)))
    return rows, first[inverse][rows]


def values(contents: Rows) -> Tensor:
    """(V, n, F) the features of some contents."""
    grid = np.arange(VIEWS)[:, None, None] * 7 + contents[None, :, None] * 1.25 + np.arange(WIDTH) / 8
    return torch.from_numpy(np.sin(grid).astype(np.float32))


class Backbone:
    """Gives the features, counts the rows, and stops after some batches."""

    def __init__(self, contents: Rows, stop: int | None = None) -> None:
        self.contents, self.stop, self.rows = contents, stop, list[int]()

    def __call__(self, requests: Iterator[Rows]) -> Iterator[Tensor]:
        for number, rows in enumerate(requests):
            if number == self.stop:
                raise Killed
            self.rows += rows.tolist()
            yield values(self.contents[rows])


def embed(
    contents: Rows,
    out: Path,
    *,
    backbone: Any = None,
    about: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Features:
    return embed_images(
        Backbone(contents) if backbone is None else backbone,
        lambda rows: [f"image-{row}" for row in rows],
        hashes(contents),
        copies_of(contents),
        layout=Layout(len(contents), VIEWS, WIDTH, PART, about or {"weights": "a"}),
        batch_size=BATCH,
        out=out,
        task="embedding",
        progress=progress or Progress(),
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


DISTINCT = np.arange(21)
WITH_COPIES = np.array([0, 1, 0, 2, 3, 1, 4, 5, 6, 0, 7, 5, 6, 6, 8, 9, 9, 0, 1, 2, 10])


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_views_of_any_rows_are_those_that_were_stored(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 40))
    contents = np.array(data.draw(st.lists(st.integers(0, 20), min_size=count, max_size=count)))
    features = embed(contents, tmp_path_factory.mktemp("parts"))
    rows = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=9)))
    views = np.array([data.draw(st.integers(0, VIEWS - 1)) for _ in rows])
    expected = values(contents)[views, rows].half().float()
    assert torch.equal(features(rows, views), expected)
    assert torch.equal(features(rows), values(contents)[0, rows].half().float())
    assert len(features) == count


def test_no_images_are_no_parts(tmp_path: Path) -> None:
    assert len(embed(np.empty(0, np.int64), tmp_path)) == 0
    assert list(files(tmp_path)) == ["parts.json"]


def test_identical_images_are_computed_once(tmp_path: Path) -> None:
    backbone = Backbone(WITH_COPIES)
    features = embed(WITH_COPIES, tmp_path, backbone=backbone)
    assert sorted(WITH_COPIES[backbone.rows]) == sorted(set(WITH_COPIES))
    assert torch.equal(features(np.arange(21), 2), values(WITH_COPIES)[2].half().float())


@pytest.mark.parametrize(
    "contents", [pytest.param(DISTINCT, marks=pytest.mark.slow), WITH_COPIES], ids=["distinct", "with copies"]
)
@pytest.mark.parametrize("stop", [0, 2, 4, 6])
def test_killed_and_resumed_is_uninterrupted_byte_for_byte(tmp_path: Path, contents: Rows, stop: int) -> None:
    embed(contents, tmp_path / "straight")
    first = Backbone(contents, stop)
    try:
        embed(contents, tmp_path / "cut", backbone=first)
    except Killed:
        with pytest.raises(RunError, match="no complete features"):
            Features(PartsDir(tmp_path / "cut"))
    done = len(list((tmp_path / "cut").glob("part-*.npy")))
    again = Backbone(contents)
    embed(contents, tmp_path / "cut", backbone=again)
    assert files(tmp_path / "cut") == files(tmp_path / "straight")
    assert all(row >= done * PART for row in again.rows), "finished parts are kept"


def test_a_damaged_part_is_named_kept_and_made_again(tmp_path: Path) -> None:
    embed(WITH_COPIES, tmp_path / "parts")
    before, part = files(tmp_path / "parts"), tmp_path / "parts" / "part-00001.npy"
    spoilt = bytearray(part.read_bytes())
    spoilt[-3] ^= 1
    part.write_bytes(bytes(spoilt))
    progress, backbone = Remembered(), Backbone(WITH_COPIES)
    embed(WITH_COPIES, tmp_path / "parts", backbone=backbone, progress=progress)
    assert "embedding: part-00001.npy is damaged; kept in " in progress.lines[0]
    assert {row // PART for row in backbone.rows} == {1}
    kept = Path(progress.lines[0].split("kept in ")[1].split(";")[0])
    assert kept.read_bytes() == bytes(spoilt)
    assert {name: data for name, data in files(tmp_path / "parts").items() if name in before} == before


@pytest.mark.parametrize("name", ["part-00002.npy", "parts.json"])
def test_what_is_missing_is_made_again(tmp_path: Path, name: str) -> None:
    embed(DISTINCT, tmp_path)
    before = files(tmp_path)
    (tmp_path / name).unlink()
    embed(DISTINCT, tmp_path)
    assert files(tmp_path) == before


def test_a_part_with_other_images_is_made_again_and_no_other(tmp_path: Path) -> None:
    embed(DISTINCT, tmp_path)
    changed = DISTINCT.copy()
    changed[10] = 99
    backbone = Backbone(changed)
    features = embed(changed, tmp_path, backbone=backbone)
    assert set(backbone.rows) == set(range(8, 16))
    assert torch.equal(features(np.arange(21)), values(changed)[0].half().float())


def test_a_larger_set_keeps_the_parts_that_it_begins_with(tmp_path: Path) -> None:
    embed(DISTINCT, tmp_path)
    larger, backbone = np.arange(30), Backbone(np.arange(30))
    embed(larger, tmp_path, backbone=backbone)
    assert min(backbone.rows) == 16, "two whole parts are kept"
    embed(larger, tmp_path / "new")
    assert {name: data for name, data in files(tmp_path / "new").items()} == {
        path.name: path.read_bytes() for path in tmp_path.glob("part*")
    }


def test_features_of_other_settings_are_not_kept(tmp_path: Path) -> None:
    embed(DISTINCT, tmp_path)
    backbone = Backbone(DISTINCT)
    embed(DISTINCT, tmp_path, backbone=backbone, about={"weights": "b"})
    assert backbone.rows == DISTINCT.tolist()


def test_a_feature_that_is_not_finite_in_float16_names_the_image(tmp_path: Path) -> None:
    def overflow(requests: Iterator[Rows]) -> Iterator[Tensor]:
        for rows in requests:
            batch = values(rows)
            batch[1, rows == 11] = 70_000.0
            yield batch

    with pytest.raises(RunError, match="'image-11' are not finite in float16"):
        embed(DISTINCT, tmp_path, backbone=overflow)


def test_a_backbone_that_gives_other_shapes_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no batch for 3 images from row 0 on"):
        embed(DISTINCT, tmp_path, backbone=lambda requests: iter(()))
    with pytest.raises(RunError, match=r"features \(3, 3, 4\) for 3 images"):
        embed(DISTINCT, tmp_path, backbone=lambda requests: (values(rows)[:, :, :-1] for rows in requests))


def test_a_truncated_part_is_one_line(tmp_path: Path) -> None:
    features = embed(DISTINCT, tmp_path)
    part = tmp_path / "part-00000.npy"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(RunError, match=r"part-00000\.npy cannot be read"):
        features(np.arange(3))


def test_a_signal_stops_between_two_batches_and_progress_ends_at_the_total(tmp_path: Path) -> None:
    progress = Counted()
    embed(DISTINCT, tmp_path, progress=progress)
    assert progress.calls[-1] == ("embedding", 21, 21)
    assert [done for _, done, _ in progress.calls] == sorted(done for _, done, _ in progress.calls)


def test_parts_of_wide_features_have_fewer_images() -> None:
    assert part_rows(1, 384) == 65_536
    assert part_rows(6, 2048) * 6 * 2048 * 2 <= 2**28


def _embedded(contents: Rows, out: Path) -> list[int]:
    backbone = Backbone(contents)
    embed(contents, out, backbone=backbone)
    return backbone.rows


@pytest.mark.parametrize(
    "contents", [pytest.param(DISTINCT, marks=pytest.mark.slow), WITH_COPIES], ids=["distinct", "with copies"]
)
def test_processes_share_the_parts_out_and_write_the_same_bytes(tmp_path: Path, contents: Rows) -> None:
    embed(contents, tmp_path / "one")
    rows = together(2, partial(_embedded, contents, tmp_path / "two"))
    assert all(rows)
    assert sorted(contents[[*rows[0], *rows[1]]]) == sorted(set(contents)), (
        "each image is computed by one of them"
    )
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_the_space_of_a_new_array_is_reserved(tmp_path: Path) -> None:
    """A map without it is written until the disk is full, and then the process is killed without a line."""
    array = new_array(tmp_path / "a.npy", np.float16, (2, 300, 500))
    size = (tmp_path / "a.npy").stat().st_size
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= size > array.nbytes
    array[:] = 3
    array.flush()
    assert (np.load(tmp_path / "a.npy") == 3).all()


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(RunError, match=r"^cannot write .*part-00000\.npy: No space left on device$"):
        embed(DISTINCT, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if "part-" in path.name]
