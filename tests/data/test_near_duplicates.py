"""Near copies of val and test images leave the pool, and every image is kept or listed."""

from __future__ import annotations

import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import Pixels, StopAfter, encoded, jpeg, make, smooth, table, write_folder
from PIL import Image

from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data import near_duplicates, scan
from noisystudent.data.held_out import HeldOut
from noisystudent.data.index import content_hash
from noisystudent.data.near_duplicates import copies_within
from noisystudent.data.phash import (
    Hashes,
    bits_between,
    has_detail,
    hash_variants,
    hashes,
    thumbnail,
    vector_variants,
    vectors,
)
from noisystudent.data.prepare import prepare
from noisystudent.data.sources import open_sources
from noisystudent.errors import Stopped
from noisystudent.run.rundir import DataDir

SIDE = 96
LISTED = ("set", "id", "found_in", "id_there", "reason", "distance")


def natural(count: int, seed: int, side: int = SIDE) -> Pixels:
    return np.stack([smooth(side, side, 1000 * seed + number) for number in range(count)])


def resized(pixels: Pixels, side: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


COPIES: dict[str, Callable[[Pixels], Pixels]] = {
    "jpeg": lambda image: jpeg(image, 60),
    "smaller": lambda image: resized(image, 70),
    "mirrored": lambda image: image[:, ::-1],
    "cropped": lambda image: image[5:, : SIDE - 5],
    "combined": lambda image: jpeg(resized(image[:-4, 4:], SIDE // 2), 50),
    "darker": lambda image: (image * 0.8).astype(np.uint8),
}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Any]:
    """Sets of unrelated images; the pool has copies of test and val images, and one of its own."""
    labeled = write_folder(tmp_path / "labeled", natural(6, 1), lambda n: f"c{n % 2}/{n}.png")
    val = write_folder(tmp_path / "val", natural(4, 2), lambda n: f"c{n % 2}/{n}.png")
    test = write_folder(tmp_path / "test", natural(6, 3), lambda n: f"c{n % 2}/{n}.png")
    pool = write_folder(tmp_path / "pool", natural(12, 4), "clean-{:02d}.png".format)
    for number, (name, change) in enumerate(COPIES.items()):
        (pool / f"{name}.png").write_bytes(encoded(change(natural(6, 3)[number])))
    (pool / "of-val.png").write_bytes(encoded(COPIES["jpeg"](natural(4, 2)[1])))
    (pool / "then-again.png").write_bytes((pool / "of-val.png").read_bytes())
    (pool / "twin.png").write_bytes(encoded(COPIES["jpeg"](natural(12, 4)[5])))
    return {"labeled": (str(labeled),), "val": (str(val),), "test": (str(test),), "unlabeled": (str(pool),)}


def ids(images: Any) -> set[str]:
    return set(images.ids(np.arange(len(images))))


CLEAN = {f"clean-{number:02d}.png" for number in range(12)}


@pytest.mark.parametrize("plane", ["resident", "streamed"])
@pytest.mark.parametrize("twins", ["report", "remove"])
def test_each_pool_image_is_kept_or_listed_with_its_pair(
    tmp_path: Path, folders: dict[str, Any], plane: str, twins: str
) -> None:
    out = tmp_path / "out"
    data = make(out, **folders, resolution=32, plane=plane, pool_near_duplicates=twins)
    rows = table(out / "leaks.csv")
    assert tuple(rows[0]) == LISTED
    named = {row["id"]: (row["found_in"], row["id_there"]) for row in rows if row["reason"] == "near copy"}
    planted = {f"{name}.png": ("test", f"c{number % 2}/{number}.png") for number, name in enumerate(COPIES)}
    planted["of-val.png"] = "val", "c1/1.png"
    twin = {"twin.png": ("pool", "clean-05.png")}
    assert named == planted | (twin if twins == "remove" else {})
    reported = [(row["id"], row["id_there"]) for row in rows if row["reason"] == "near copy kept"]
    assert reported == ([] if twins == "remove" else [("twin.png", "clean-05.png")])
    distances = {row["id"]: int(row["distance"]) for row in rows}
    assert distances.pop("then-again.png") == 0, "an exact copy"
    assert max(distances.values()) <= 88
    removed = [row["id"] for row in rows if row["reason"] != "near copy kept"]
    kept = data.pool.ids(np.arange(len(data.pool)))
    assert sorted([*kept, *removed]) == sorted(file.name for file in (tmp_path / "pool").iterdir())
    counted = f"pool: {len(COPIES)} images removed, near copies of images in test (see leaks.csv)"
    assert counted in data.notes


def test_off_removes_exact_copies_only(tmp_path: Path, folders: dict[str, Any]) -> None:
    data = make(tmp_path / "out", **folders, resolution=32, near_duplicates="off")
    assert ids(data.pool) == CLEAN | {f"{name}.png" for name in COPIES} | {"of-val.png", "twin.png"}
    assert {row["reason"] for row in table(tmp_path / "out" / "leaks.csv")} == {"copy"}


def test_small_images_are_compared_only_if_that_is_configured(tmp_path: Path) -> None:
    images = natural(8, 1, side=36)
    labeled = write_folder(tmp_path / "labeled", images, lambda n: f"c{n % 2}/{n}.png")
    test = write_folder(tmp_path / "test", natural(4, 2, side=36), lambda n: f"c{n % 2}/{n}.png")
    pool = write_folder(tmp_path / "pool", natural(12, 4, side=36), "clean-{:02d}.png".format)
    (pool / "copy.png").write_bytes(encoded(natural(4, 2, side=36)[3][2:, ::-1]))
    specs: dict[str, Any] = {"labeled": (str(labeled),), "test": (str(test),), "unlabeled": (str(pool),)}
    assert ids(make(tmp_path / "auto", **specs).pool) == CLEAN | {"copy.png"}
    assert ids(make(tmp_path / "all", **specs, near_duplicates="all").pool) == CLEAN


def test_each_held_out_image_is_compared_by_its_own_size(tmp_path: Path, folders: dict[str, Any]) -> None:
    for file in (tmp_path / "test").rglob("*.png"):  # now too small for a hash alone
        file.write_bytes(encoded(resized(np.asarray(Image.open(file)), 48)))
    data = make(tmp_path / "out", **folders, resolution=32)
    assert ids(data.pool) == CLEAN | {f"{name}.png" for name in COPIES} | {"twin.png"}
    assert "of-val.png" in {row["id"] for row in table(tmp_path / "out" / "leaks.csv")}
    assert ids(make(tmp_path / "all", **folders, resolution=32, near_duplicates="all").pool) == CLEAN | {
        "twin.png"
    }


def test_workers_find_what_one_process_finds(
    tmp_path: Path, folders: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "alone", **folders, resolution=32)
    make(tmp_path / "again", **folders, resolution=32)
    monkeypatch.setattr(scan, "_FEW", 0)
    monkeypatch.setattr(scan, "_CHUNK", 5)
    monkeypatch.setattr(near_duplicates, "_AT_ONCE", 3)
    make(tmp_path / "together", **folders, resolution=32, workers=2)
    for name in ("leaks.csv", "manifest.parquet", "dataset.json"):
        expected = (tmp_path / "alone" / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == expected
        assert (tmp_path / "together" / name).read_bytes() == expected


def test_a_near_copy_is_never_labelled_or_selected(tmp_path: Path) -> None:
    images = tiny.write_images(tmp_path / "images")
    first = sorted((images / "test").rglob("*.png"))[0]
    brighter = np.clip(np.asarray(Image.open(first), np.int16) + 9, 0, 255).astype(np.uint8)
    planted = encoded(brighter)
    (images / "pool" / "planted.png").write_bytes(planted)
    tiny.run(tiny.config(images, ("data.near_duplicates", "all")), tmp_path / "run")
    (row,) = table(tmp_path / "run" / "data" / "leaks.csv")
    assert row["id"] == "planted.png" and row["reason"] == "near copy" and first.name in row["id_there"]
    files = [*(tmp_path / "run" / "iteration-1").rglob("*.parquet")]
    assert any(file.name == "selection.parquet" for file in files) and len(files) > 1
    for file in files:
        contents = pq.read_table(file, columns=["content_hash"])["content_hash"].to_pylist()
        assert contents and content_hash(planted) not in contents


@pytest.mark.parametrize("checks", [2, 4])
def test_an_interrupted_scan_ends_as_an_uninterrupted_one(
    tmp_path: Path, folders: dict[str, Any], checks: int
) -> None:
    make(tmp_path / "straight", **folders, resolution=32)
    config = DataConfig(**folders, resolution=32, workers=0)
    sources, out = open_sources(config), DataDir(tmp_path / "cut")
    with pytest.raises(Stopped):
        prepare(config, sources, out, 0, StopAfter(checks))
    prepare(config, sources, out, 0, Progress())
    for name in ("leaks.csv", "manifest.parquet", "dataset.json"):
        assert (out.path / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), flipped=st.lists(st.integers(0, 120), min_size=1, max_size=8))
def test_the_search_finds_the_nearest_picture_with_a_near_hash(seed: int, flipped: list[int]) -> None:
    rng = np.random.default_rng(seed)
    held = np.stack([thumbnail(smooth(96, 96, int(one))) for one in rng.integers(0, 500, 3)])
    variants, directions = hash_variants(held), vector_variants(held)
    queries = variants[rng.integers(0, 3, len(flipped)), rng.integers(0, 22, len(flipped))]
    small = rng.integers(0, 256, (len(flipped), 3, 16, 16), dtype=np.uint8)
    for query, count in zip(queries, flipped, strict=True):
        for bit in rng.choice(256, count, replace=False):
            query[bit // 8] ^= 1 << (bit % 8)
    expected = []
    for number, query in enumerate(queries):
        far = np.bitwise_count(variants ^ query).sum(axis=-1)
        coarse = np.bitwise_count(variants[..., :8] ^ query[:8]).sum(axis=-1)
        cosines = np.where((coarse <= 14) & (far <= 88), directions @ vectors(small[number, None])[0], -9)
        if cosines.max() > -9:
            expected.append((number, int(cosines.argmax()) // 22, int(far.flat[cosines.argmax()])))
    found = HeldOut(held, held[:0]).nearest(queries, small)
    assert list(zip(*(column.tolist() for column in found[:3]), strict=True)) == expected


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kinds=st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_copies_within_a_set_are_near_an_earlier_image(seed: int, kinds: list[int]) -> None:
    found = hashes(np.stack([thumbnail(smooth(96, 96, kind)) for kind in kinds]))
    for image in found:  # at most 7 bits differ between copies, so that they share one of 8 words
        for bit in np.random.default_rng(seed).choice(256, 3, replace=False):
            image[bit // 8] ^= 1 << (bit % 8)
    later, earlier, distances = copies_within(found)
    assert np.array_equal(distances, bits_between(found[later], found[earlier])) and (earlier < later).all()
    assert [kinds[row] for row in later] == [kinds[row] for row in earlier]
    seen: set[int] = set()
    repeated = [row for row, kind in enumerate(kinds) if kind in seen or seen.add(kind)]  # type: ignore[func-returns-value]
    assert later.tolist() == repeated


def frames(count: int, scene: int, flipped: int, seed: int = 0) -> Hashes:
    """Hashes of scenes of so many frames, each with up to `flipped` bits of the hash of its scene flipped."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (count // scene + 1, 32), dtype=np.uint8).repeat(scene, axis=0)[:count]
    for bit in rng.integers(0, 256, (flipped, count)):
        codes[np.arange(count), bit // 8] ^= (1 << bit % 8).astype(np.uint8)
    return codes


def nearest_neighbours(codes: Hashes) -> list[tuple[int, int, int]]:
    """The nearest of the last four images with an equal word, the first of several, without sorting."""
    detailed, result = has_detail(codes), []
    seen: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for later in np.flatnonzero(detailed).tolist():
        found = []
        for number in range(8):
            earlier = seen[number, codes[later, 4 * number : 4 * number + 4].tobytes()]
            found += [(int(np.bitwise_count(codes[later] ^ codes[one]).sum()), one) for one in earlier[-4:]]
            earlier.append(later)
        if found and min(found)[0] <= 32:
            result.append((later, *min(found)[::-1]))
    return result


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(0, 60),
    scene=st.integers(1, 30),
    flipped=st.sampled_from([0, 1, 2, 8, 30]),
    at_once=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_image_has_its_nearest_neighbour_and_the_first_of_several(
    count: int, scene: int, flipped: int, at_once: int, seed: int
) -> None:
    """Few flipped bits give many equal distances."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(frames(count, scene, flipped, seed))
    codes[rng.random(count) < 0.1] = 0  # flat images are not compared
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_AT_ONCE", at_once)
        found = copies_within(codes)
    assert list(zip(*(column.tolist() for column in found), strict=True)) == nearest_neighbours(codes)
    assert [column.dtype for column in found] == [np.int64, np.int64, np.int32]


@pytest.mark.parametrize("flipped", [0, 3])
def test_memory_of_the_search_does_not_grow_with_the_number_of_near_frames(flipped: int) -> None:
    """Every pair took 2,000 bytes an image and more: 20 GB for ten million frames of videos."""
    codes = frames(100_000, 100, flipped)
    tracemalloc.start()
    later, _, _ = copies_within(codes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(later) == 99_000 and peak < 64 * len(codes)
