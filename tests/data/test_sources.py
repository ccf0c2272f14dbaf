"""All forms of an image set have the same items, bytes and labels; wrong specs are errors of one line."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded, labeled_folder, random_images
from shard_files import contents, parquet, tarred

from noisystudent.config import DataConfig
from noisystudent.data.scan import uses_workers
from noisystudent.data.sources import ArraySource, Sources, listing_fingerprint, open_source, open_sources
from noisystudent.data.sources.given import Edited
from noisystudent.errors import InputError
from noisystudent.run.fingerprint import ListingFingerprint


def test_npz_and_arrays_hold_pixels_and_labels(tmp_path: Path) -> None:
    images = random_images(6)
    labels = np.array([0, 1, 2, 0, 1, 2])
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    for source in (open_source([tmp_path / "d.npz"], True), open_source([ArraySource(images, labels)], True)):
        assert contents(source) == [
            (str(n), image.tobytes()) for n, image in zip(labels, images, strict=True)
        ]
        assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


def test_arrays_in_memory_are_not_copied_to_workers_whatever_holds_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=random_images(6))
    folder, array = labeled_folder(tmp_path / "d"), ArraySource(random_images(6), name="a")
    specs: list[list[Any]] = [[array], [tmp_path / "d.npz"], [array, array], [folder, array]]
    for source in (open_source(spec, labeled=False) for spec in specs):
        assert not uses_workers(source, 10**6, workers=8)
        assert not uses_workers(Edited(source, {"x": None}), 10**6, workers=8)
    files = open_source([folder, folder], labeled=False)
    assert uses_workers(files, 10**6, workers=8) and uses_workers(Edited(files, {}), 10**6, workers=8)


class Series:
    """As a shuffled pandas Series: `[label]` looks a value up by its index, iteration is in order."""

    def __init__(self, values: list[str], index: list[int]) -> None:
        self._values, self._index = values, index

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __getitem__(self, label: int) -> str:
        return self._values[self._index.index(label)]


def test_labels_are_taken_in_order_not_by_their_own_index() -> None:
    labels: Any = Series(["a", "b", "c"], [2, 0, 1])
    assert [item.label for item in ArraySource(random_images(3), labels).items()] == ["a", "b", "c"]


def test_pool_folders_nest_and_the_folder_of_an_image_is_the_hidden_truth(tmp_path: Path) -> None:
    for name in ("cat/a/b/1.png", "cat/2.jpg", "3.JPEG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    items = list(open_source([tmp_path], labeled=False).items())
    assert [(item.id, item.label) for item in items] == [
        ("3.JPEG", tmp_path.name),
        ("cat/2.jpg", "cat"),
        ("cat/a/b/1.png", "b"),
    ]


def test_side_cars_are_skipped_and_unknown_files_are_noted(tmp_path: Path) -> None:
    for name in ("1.png", ".DS_Store", "notes.txt", "meta.json", ".hidden/2.png", "movie.heic", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = open_source([tmp_path], labeled=False)
    assert [item.id for item in source.items()] == ["1.png"]
    (note,) = source.notes()
    assert ".heic: 1" in note and "no suffix: 1" in note and ".txt" not in note


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.png").write_bytes(b"x")
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "linked").symlink_to(tmp_path / "real")
    (pool / "circle").symlink_to(pool)
    (pool / "gone.png").symlink_to(tmp_path / "nowhere")
    (pool / "self.png").symlink_to(pool / "self.png")
    source = open_source([pool], labeled=False)
    assert [item.id for item in source.items()] == ["gone.png", "linked/1.png", "self.png"]


def test_several_specs_have_ids_of_their_own(tmp_path: Path) -> None:
    first, second = labeled_folder(tmp_path / "a" / "d", 4), labeled_folder(tmp_path / "b" / "d", 4, seed=1)
    shard = tarred(second, tmp_path / "t.tar")
    source = open_source([first, second, shard], labeled=True)
    items = list(source.items())
    assert len({item.id for item in items}) == len(source) == 12
    assert {item.id.split("/")[0] for item in items} == {"0-d", "1-d", "2-t.tar"}
    parts = [contents(open_source([spec], labeled=True)) for spec in (first, second, shard)]
    assert contents(pickle.loads(pickle.dumps(source))) == [*parts[0], *parts[1], *parts[2]]


def test_an_empty_class_folder_is_noted_and_left_out(tmp_path: Path) -> None:
    folder = labeled_folder(tmp_path / "d")
    (folder / "empty").mkdir()
    source = open_source([folder], labeled=True)
    assert {item.label for item in source.items()} == {"c0", "c1", "c2"}
    (note,) = source.notes()
    assert "'empty'" in note


@settings(max_examples=10, deadline=None)
@given(
    names=st.sets(st.sampled_from(["README.txt", ".DS_Store", "loose.png", "run.sh", "a.HEIC"]), min_size=1)
)
def test_files_beside_class_folders_are_left_out_in_one_line(names: set[str]) -> None:
    with TemporaryDirectory() as root:
        folder = labeled_folder(Path(root) / "d")
        clean = contents(open_source([folder], labeled=True))
        for name in names:
            (folder / name).write_bytes(b"x")
        source = open_source([folder], labeled=True)
        assert contents(source) == clean
        first = min(names)
        assert source.notes() == (
            f"{folder}: files beside the class folders are left out: {len(names)}, the first is '{first}'",
        )


def test_shards_beside_class_folders_are_refused(tmp_path: Path) -> None:
    folder = labeled_folder(tmp_path / "d")
    tarred(folder, tmp_path / "t.tar").rename(folder / "t.tar")
    with pytest.raises(InputError, match=r"holds class folders and t\.tar; give '.*/\*\.tar'"):
        open_source([folder], labeled=True)
    assert len(open_source([f"{folder}/*.tar"], labeled=True)) > 0
    (folder / "t.tar").unlink()
    assert len(open_source([folder], labeled=True)) > 0


@pytest.mark.parametrize("image", ["1.png", "sub/1.png"])
def test_shards_beside_images_of_a_pool_are_refused(tmp_path: Path, image: str) -> None:
    pool = tmp_path / "pool"
    (pool / image).parent.mkdir(parents=True)
    tarred(labeled_folder(tmp_path / "d"), pool / "old.tar")
    assert len(open_source([pool], labeled=False)) == 12
    (pool / image).write_bytes(encoded(random_images(1)[0]))
    with pytest.raises(InputError, match=r"pool: holds image files and old\.tar; give '.*/\*\.tar'"):
        open_source([pool], labeled=False)


@pytest.mark.parametrize("labeled", [True, False])
def test_tar_and_parquet_shards_in_one_folder_are_refused(tmp_path: Path, labeled: bool) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    tarred(labeled_folder(tmp_path / "d"), folder / "a.tar")
    parquet(folder / "b.parquet", [encoded(random_images(1)[0])], [0], True, None)
    with pytest.raises(
        InputError, match=r"both: holds a\.tar and b\.parquet; give '.*\.tar' and '.*\.parquet'"
    ):
        open_source([folder], labeled)


def wrong_specs(root: Path) -> dict[str, tuple[object, bool, str]]:
    (root / "void").mkdir()
    (root / "flat").mkdir()
    (root / "flat" / "1.png").write_bytes(b"x")
    (root / "hollow" / "c").mkdir(parents=True)
    (root / "junk.tar").write_bytes(b"no tar" * 300)
    (root / "junk.parquet").write_bytes(b"no parquet")
    (root / "junk.npz").write_bytes(b"no npz")
    np.savez(root / "pickled.npz", images=np.array([{}], dtype=object))
    np.savez(root / "unlabeled.npz", images=random_images(2))
    np.savez(root / "float.npz", images=np.zeros((2, 4, 4), np.float32))
    (root / "x.tar.gz").write_bytes(b"x")
    whole = tarred(labeled_folder(root / "d"), root / "whole.tar").read_bytes()
    (root / "cut.tar").write_bytes(whole[:300])
    parquet(root / "none.parquet", [b"x"], None, True, None)
    pq.write_table(pa.table({"text": ["x"]}), root / "text.parquet")
    return {
        "missing": (root / "nowhere", False, "no such file"),
        "empty": (root / "void", False, "no images"),
        "empty labeled": (root / "void", True, "no class folders"),
        "no classes": (root / "flat", True, "no class folders"),
        "no images in classes": (root / "hollow", True, "no images in its 1"),
        "junk tar": (root / "junk.tar", False, "junk.tar"),
        "cut tar": (root / "cut.tar", True, "cut.tar"),
        "compressed": (root / "x.tar.gz", False, "plain .tar"),
        "junk parquet": (root / "junk.parquet", False, "not a Parquet"),
        "junk npz": (root / "junk.npz", False, "junk.npz"),
        "pickled npz": (root / "pickled.npz", False, "pickled.npz"),
        "unlabeled npz": (root / "unlabeled.npz", True, "no label"),
        "unlabeled parquet": (root / "none.parquet", True, "no label"),
        "float": (root / "float.npz", False, "float32"),
        "no image column": (root / "text.parquet", False, "columns: text"),
        "unlabeled array": (ArraySource(random_images(2)), True, "no label"),
        "minus one": (ArraySource(random_images(2), [0, -1]), True, "no label"),
    }


def test_wrong_specs_end_in_one_line_that_names_them(tmp_path: Path) -> None:
    for name, (spec, labeled, words) in wrong_specs(tmp_path).items():
        with pytest.raises(InputError, match=words) as caught:
            list(open_source([spec], labeled).items())  # type: ignore[list-item]
        assert "\n" not in str(caught.value), name
        if isinstance(spec, Path):
            assert spec.name in str(caught.value), name


def test_label_counts_must_agree() -> None:
    with pytest.raises(InputError, match="2 images but 3 labels"):
        ArraySource(random_images(2), [0, 1, 2])


def test_open_sources_names_the_field(tmp_path: Path) -> None:
    folder = str(labeled_folder(tmp_path / "d"))
    with pytest.raises(InputError, match=r"^data.unlabeled: .*nowhere"):
        open_sources(DataConfig(labeled=(folder,), unlabeled=(str(tmp_path / "nowhere"),)))
    with pytest.raises(InputError, match="--labeled"):
        open_sources(DataConfig())
    assert [name for name, _ in open_sources(DataConfig(labeled=(folder,), test=(folder,))).named()] == [
        "labeled",
        "test",
    ]


def test_fingerprint_sees_every_change(tmp_path: Path) -> None:
    folder = labeled_folder(tmp_path / "d")
    images = random_images(3)

    def now() -> ListingFingerprint:
        return listing_fingerprint(
            Sources(open_source([folder], True), open_source([ArraySource(images)], False))
        )

    seen = [now()]
    assert now() == seen[0]
    file = folder / "c0" / "0000.png"
    os.utime(file, ns=(1, 1))
    seen.append(now())
    file.write_bytes(encoded(random_images(1, seed=9)[0]))
    seen.append(now())
    file.rename(file.with_name("other.png"))
    seen.append(now())
    images[0, 0, 0, 0] ^= 1
    seen.append(now())
    assert len(set(seen)) == 5
    assert [one.labeled for one in seen] == [*(one.labeled for one in seen[:4]), seen[3].labeled]
    assert [one.pool for one in seen] == [seen[0].pool] * 4 + [seen[4].pool]
