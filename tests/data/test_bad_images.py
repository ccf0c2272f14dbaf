"""Unusual images are used, broken ones are in the ledger, and sets that do not fit are one clear error."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import encoded, labeled_folder, make, random_images, table, write_folder
from PIL import Image
from shard_files import parquet, tarred

from noisystudent.errors import InputError, RunError


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    return labeled_folder(tmp_path / "labeled", 30)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pool", random_images(20, seed=5), lambda n: f"c{n % 2}/{n:02d}.png")


def odd_files(pool: Path) -> None:
    Image.new("RGB", (1, 1), (9, 8, 7)).save(pool / "pixel.png")
    Image.new("CMYK", (20, 9)).save(pool / "cmyk.jpg")
    (pool / "wide.png").write_bytes(encoded(np.full((3, 40), 40_000, np.uint16)))
    frames = [Image.new("L", (6, 6), value) for value in (0, 255)]
    frames[0].save(pool / "moving.gif", save_all=True, append_images=frames[1:])


def bad_files(pool: Path) -> list[str]:
    buffer = io.BytesIO()
    Image.fromarray(random_images(1, 40)[0]).save(buffer, "JPEG")
    (pool / "cut.jpg").write_bytes(buffer.getvalue()[:-300])
    (pool / "text.jpg").write_text("not an image\n")
    (pool / "empty.png").write_bytes(b"")
    (pool / "dangling.jpg").symlink_to(pool / "nowhere")
    (pool / "loop.jpg").symlink_to(pool / "loop.jpg")
    Image.new("L", (300, 300)).save(pool / "huge.png")
    return ["cut.jpg", "dangling.jpg", "empty.png", "huge.png", "loop.jpg", "text.jpg"]


@pytest.mark.parametrize("plane", ["resident", "streamed"])
def test_odd_images_are_used_and_bad_ones_are_in_the_ledger(
    tmp_path: Path, labeled: Path, pool: Path, plane: str
) -> None:
    odd_files(pool)
    bad = bad_files(pool)
    specs: dict[str, Any] = {"labeled": (str(labeled),), "unlabeled": (str(pool),)}
    data = make(tmp_path / "out", **specs, plane=plane, max_bad_fraction=0.5, max_pixels=10_000)
    ledger = table(tmp_path / "out" / "ledger.csv")
    assert sorted(row["id"] for row in ledger) == bad
    assert all(row["set"] == "pool" and row["reason"] for row in ledger)
    names = data.pool.ids(np.arange(24))
    pixels = data.pool.fetch(np.arange(24), 8)
    for number, image in enumerate(random_images(20, seed=5)):
        row = names.index(f"c{number % 2}/{number:02d}.png")
        assert np.array_equal(pixels[row].permute(1, 2, 0).numpy(), image), "no bad image moved another's row"
    assert pixels[names.index("pixel.png"), :, 3, 3].tolist() == [9, 8, 7]
    assert pixels[names.index("wide.png")].unique().tolist() == [40_000 >> 8]
    assert pixels[names.index("moving.gif")].max() == 0
    assert any("6 of 30" in note for note in data.notes)


def test_a_cut_shard_is_used_up_to_the_cut_and_noted(tmp_path: Path, labeled: Path, pool: Path) -> None:
    path = tmp_path / "pool.tar"
    with tarfile.open(path, "w") as archive:
        for file in sorted(pool.rglob("*.png")):
            archive.add(file, str(file.relative_to(pool)))
    with tarfile.open(path) as archive:
        cut = archive.getmembers()[12].offset_data + 20
    path.write_bytes(path.read_bytes()[:cut])
    specs: dict[str, Any] = {"labeled": (str(labeled),), "unlabeled": (str(path),)}
    data = make(tmp_path / "out", **specs, max_bad_fraction=0.2)
    assert len(data.pool) == 12
    assert [row["id"] for row in table(tmp_path / "out" / "ledger.csv")] == ["c1/05.png", f"pool.tar@{cut}"]
    assert any("pool.tar: cut short or damaged" in note for note in data.notes)


def test_a_cut_shard_stops_the_run_however_few_its_lines_in_the_ledger(tmp_path: Path, labeled: Path) -> None:
    """A line of the ledger may stand for any number of images."""
    pool = write_folder(tmp_path / "pool", random_images(120, seed=5), lambda n: f"{n:03d}.png")
    files = sorted(pool.iterdir())
    tarred(pool, tmp_path / "a.tar", files=files[:110])
    cut = tarred(pool, tmp_path / "b.tar", files=files[110:])
    with tarfile.open(cut) as archive:
        second = archive.getmembers()[1].offset
    cut.write_bytes(cut.read_bytes()[:second])
    specs: dict[str, Any] = {"labeled": (str(labeled),), "unlabeled": (str(tmp_path / "*.tar"),)}
    message = rf"^pool: shards have lost images, or .*; the first is b/b\.tar@{second} \(.*the shard is cut"
    with pytest.raises(InputError, match=message):
        make(tmp_path / "out", **specs)
    assert len(make(tmp_path / "lenient", **specs, max_bad_fraction=0.02).pool) == 111


def test_too_many_bad_images_stop_the_run_and_leave_the_ledger(
    tmp_path: Path, labeled: Path, pool: Path
) -> None:
    bad_files(pool)
    with pytest.raises(InputError, match=r"pool: 5 of 26 .*0\.01; the first is cut\.jpg \(.*ledger\.csv$"):
        make(tmp_path / "out", labeled=(str(labeled),), unlabeled=(str(pool),))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ledger.csv"]


def test_classes_must_agree(tmp_path: Path, labeled: Path) -> None:
    spec = (str(labeled),)
    one = str(labeled_folder(tmp_path / "one", 4, classes=1))
    with pytest.raises(InputError, match=r"only class 'c0'; at least two"):
        make(tmp_path / "out", labeled=(one,))
    more = str(labeled_folder(tmp_path / "more", 8, classes=4, seed=3))
    for name in ("val", "test"):
        extra: dict[str, Any] = {name: (more,)}
        with pytest.raises(InputError, match=rf"data\.{name}: class 'c3' is not a class of data\.labeled"):
            make(tmp_path / "out", labeled=spec, **extra)
    fewer = str(labeled_folder(tmp_path / "fewer", 4, classes=2, seed=3))
    data = make(tmp_path / "out", labeled=spec, val=(fewer,))
    assert any("val: no image of 1 classes ('c2')" in note for note in data.notes)


def test_a_class_whose_images_are_all_bad_is_left_out(tmp_path: Path, labeled: Path) -> None:
    (labeled / "zz").mkdir()
    (labeled / "zz" / "1.png").write_bytes(b"x")
    data = make(tmp_path / "out", labeled=(str(labeled),), max_bad_fraction=0.1)
    assert data.classes == ("c0", "c1", "c2") and any("'zz'" in note for note in data.notes)


def test_a_set_that_lost_all_its_images_is_an_error(tmp_path: Path, labeled: Path) -> None:
    with pytest.raises(InputError, match=r"val: every image is also in another set"):
        make(tmp_path / "out", labeled=(str(labeled),), test=(str(labeled),), val=(str(labeled),))
    assert table(tmp_path / "out" / "leaks.csv")


def test_a_class_that_lost_all_its_images_is_an_error(tmp_path: Path, labeled: Path) -> None:
    test = tmp_path / "test"
    shutil.copytree(labeled / "c2", test / "c2")
    with pytest.raises(InputError, match=r"every image of 1 classes \('c2'\) is also in val or test"):
        make(tmp_path / "out", labeled=(str(labeled),), test=(str(test),))
    assert table(tmp_path / "out" / "leaks.csv")


def test_a_shard_that_vanishes_is_named(tmp_path: Path, labeled: Path) -> None:
    images = [encoded(pixels) for pixels in random_images(6, seed=5)]
    path = parquet(tmp_path / "p.parquet", images, None, True, None)
    data = make(tmp_path / "out", labeled=(str(labeled),), unlabeled=(str(path),), plane="streamed")
    in_a_worker = pickle.loads(pickle.dumps(data.pool))
    path.unlink()
    with pytest.raises(RunError, match=r"p\.parquet: .* cannot be read any more"):
        in_a_worker.fetch(np.arange(2), 8)


def test_contradicting_labels_are_noted(tmp_path: Path, labeled: Path) -> None:
    (labeled / "c1" / "again.png").write_bytes((labeled / "c0" / "0000.png").read_bytes())
    data = make(tmp_path / "out", labeled=(str(labeled),))
    assert any("2 images have a copy with another label" in note for note in data.notes)
    assert len(data.labeled) + len(data.val) == 31
