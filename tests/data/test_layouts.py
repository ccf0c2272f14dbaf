"""Images with a common layout are no near copies of each other, and copies among them are still found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import Pixels, encoded, jpeg, make, smooth, table, write_folder
from PIL import Image
from sklearn.datasets import load_digits

from noisystudent.data.held_out import HeldOut
from noisystudent.data.phash import hashes, pictures, thumbnail
from noisystudent.errors import InputError

HELD_OUT, LABELED, POOL = 150, 20, 300


def digits() -> Pixels:
    """scikit-learn's digits in an order of their own, as white figures on a large black canvas."""
    grey = (load_digits().images * 255 / 16).astype(np.uint8)
    chosen = np.random.default_rng(0).permutation(len(grey))[: HELD_OUT + LABELED + POOL]
    large = [
        np.asarray(Image.fromarray(grey[one]).resize((64, 64), Image.Resampling.BICUBIC)) for one in chosen
    ]
    return np.stack([np.repeat(np.pad(one, 16)[..., None], 3, axis=2) for one in large])


def copies(held: Pixels, images: Pixels) -> np.ndarray:
    """(n,) True for images that are near copies of held-out ones."""
    found, thumbnails = (np.stack([thumbnail(one) for one in some]) for some in (held, images))
    guard = HeldOut(found, found[:0])
    rows, owners, _, distances = guard.nearest(hashes(thumbnails), pictures(thumbnails))
    near = np.zeros(len(images), np.bool_)
    near[rows[guard.are_copies(owners, distances)]] = True
    return near


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Any]:
    images = digits()
    test, labeled, pool = np.split(images, [HELD_OUT, HELD_OUT + LABELED])
    sets = {
        "test": write_folder(tmp_path / "test", test, lambda n: f"c{n % 2}/{n}.png"),
        "labeled": write_folder(tmp_path / "labeled", labeled, lambda n: f"c{n % 2}/{n}.png"),
        "unlabeled": write_folder(tmp_path / "pool", pool, "clean-{:03d}.png".format),
    }
    return {name: (str(folder),) for name, folder in sets.items()}


def add_copies(folder: Path, count: int) -> None:
    for number, pixels in enumerate(digits()[:count]):
        (folder / f"copy-{number:03d}.jpg").write_bytes(encoded(pixels, "JPEG", quality=60))


def test_a_layout_makes_no_copies_and_hides_none(tmp_path: Path, folders: dict[str, Any]) -> None:
    add_copies(tmp_path / "pool", 10)
    data = make(tmp_path / "out", **folders)
    kept = data.pool.ids(np.arange(len(data.pool)))
    assert not any(name.startswith("copy") for name in kept)
    assert len(kept) >= 0.98 * POOL
    rows = {row["id"]: row for row in table(tmp_path / "out" / "leaks.csv") if row["reason"] == "near copy"}
    right = sum(Path(rows[f"copy-{n:03d}.jpg"]["id_there"]).stem == str(n) for n in range(10))
    assert right == 10
    assert not any(note.startswith("warning") for note in data.notes)


def test_labelled_near_copies_are_listed_and_stay(tmp_path: Path, folders: dict[str, Any]) -> None:
    add_copies(tmp_path / "labeled" / "c1", 3)
    data = make(tmp_path / "out", **folders)
    assert len(data.labeled) + len(data.val) == LABELED + 3
    listed = [row for row in table(tmp_path / "out" / "leaks.csv") if row["id"].startswith("c1/copy")]
    of_test = {row["id"] for row in listed if (row["found_in"], row["reason"]) == ("test", "near copy kept")}
    # an image of val may be among them: val is split off the labelled images
    in_val = {name for name in data.val.ids(np.arange(len(data.val))) if "copy" in name}
    assert of_test | in_val == {f"c1/copy-{number:03d}.jpg" for number in range(3)}
    assert any("near copies of images in test; they stay" in note for note in data.notes)


def test_many_copies_bring_a_warning_that_names_the_option(tmp_path: Path, folders: dict[str, Any]) -> None:
    add_copies(tmp_path / "pool", 40)
    notes = make(tmp_path / "out", **folders).notes
    (warning,) = [note for note in notes if note.startswith("warning: pool: 4")]
    assert "of 340 images" in warning and "--data.near_duplicates off" in warning


def test_a_pool_of_near_copies_alone_names_the_option(tmp_path: Path, folders: dict[str, Any]) -> None:
    for file in (tmp_path / "pool").iterdir():
        file.unlink()
    add_copies(tmp_path / "pool", 10)
    with pytest.raises(InputError, match=r"10 are near copies .* give --data.near_duplicates off"):
        make(tmp_path / "out", **folders)


def test_copies_of_an_image_that_the_test_set_has_three_times_are_found() -> None:
    held = digits()[:HELD_OUT]
    shifted = [np.roll(held[0], step, axis=1) for step in (1, -1)]
    again = jpeg(held[0], 80)
    assert copies(np.concatenate([held, shifted]), again[None]).all()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_few_held_out_images_are_guarded_too(size: int) -> None:
    held = np.stack([smooth(96, 96, number) for number in range(size)])
    again = jpeg(held[0], 60)
    assert copies(held, np.stack([again, again[:, ::-1], smooth(96, 96, 99)])).tolist() == [True, True, False]


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_image_is_no_copy_of_an_icon(level: int) -> None:
    icons = np.full((6, 96, 96, 3), 255, np.uint8)
    for number, icon in enumerate(icons):
        radius = 10 + 5 * number
        icon[48 - radius : 48 + radius, 44:52] = icon[44:52, 48 - radius : 48 + radius] = 0
    assert not copies(icons, np.full((1, 96, 96, 3), level, np.uint8)).any()


def test_equal_images_within_a_held_out_set_are_noted(tmp_path: Path, folders: dict[str, Any]) -> None:
    (tmp_path / "test" / "c0" / "again.png").write_bytes((tmp_path / "test" / "c0" / "0.png").read_bytes())
    data = make(tmp_path / "out", **folders)
    assert data.test is not None and len(data.test) == HELD_OUT + 1
    assert (
        "test: 1 images are copies of others in test; they stay, and each counts (see leaks.csv)"
        in data.notes
    )
