"""Scan, splits and leaks from end to end; errors are reported, and no unfinished files stay."""

from __future__ import annotations

import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import StopAfter, labeled_folder, make, prepared, random_images, table, write_folder
from tiny import Counted

from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data import scan
from noisystudent.data.prepare import Dataset, open_dataset, prepare
from noisystudent.data.sources import ArraySource, Sources, open_source, open_sources
from noisystudent.errors import InputError, RunError, Stopped
from noisystudent.run.rundir import DataDir


def hashes(images: Any) -> set[bytes]:
    return {row.tobytes() for row in images.content_hash}


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    return labeled_folder(tmp_path / "labeled", 30)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pool", random_images(20, seed=5), lambda n: f"c{n % 2}/{n:02d}.png")


def test_sets_hold_the_images_they_were_given(tmp_path: Path, labeled: Path, pool: Path) -> None:
    data = make(tmp_path / "out", labeled=(str(labeled),), unlabeled=(str(pool),), val_fraction=0.2)
    assert data.classes == ("c0", "c1", "c2") and data.test is None
    assert (len(data.labeled), len(data.val), len(data.pool)) == (24, 6, 20)
    assert np.bincount(data.val.labels).tolist() == [2, 2, 2]
    assert not hashes(data.labeled) & hashes(data.val)
    images = random_images(30)
    for part in (data.labeled, data.val):
        rows = np.arange(len(part))
        numbers = [int(name[-8:-4]) for name in part.ids(rows)]
        assert part.labels.tolist() == [number % 3 for number in numbers]
        assert np.array_equal(part.fetch(rows, 8).permute(0, 2, 3, 1).numpy(), images[numbers])
    assert set(data.pool.labels) == {-1}
    assert data.pool.view_sizes(np.arange(20)).tolist() == [[8, 8]] * 20


def test_the_manifest_has_a_row_for_each_image_in_use(tmp_path: Path, labeled: Path, pool: Path) -> None:
    data = make(tmp_path / "out", labeled=(str(labeled),), unlabeled=(str(pool),))
    manifest = pq.read_table(tmp_path / "out" / "manifest.parquet")
    assert manifest.column_names[:6] == ["set", "row", "id", "label", "truth", "content_hash"]
    for part in (data.labeled, data.val, data.pool):
        rows = manifest.filter(pa.compute.equal(manifest["set"], part.name))
        assert rows["row"].to_pylist() == list(range(len(part)))
        assert rows["id"].to_pylist() == part.ids(np.arange(len(part)))
        assert rows["label"].to_pylist() == part.labels.tolist()
        assert rows["truth"].to_pylist() == part.truth.tolist()
        assert rows["content_hash"].to_pylist() == [row.tobytes() for row in part.content_hash]


@pytest.mark.parametrize("form", [Path, "tar"])
def test_the_folder_that_holds_a_pool_image_is_its_hidden_truth(
    tmp_path: Path, labeled: Path, form: object
) -> None:
    names = (
        "c1/0.png",
        "real/c2/1.png",
        "c0/junk/2.png",
        "real/deep/c0/3.png",
        "4.png",
        "c3/5.png",
        "c/6.png",
    )
    pool = write_folder(tmp_path / "pool", random_images(7, seed=5), names.__getitem__)
    pool = as_tar(pool) if form == "tar" else pool
    truths = []
    for number, switch in enumerate(
        (True, False)
    ):  # the switch decides if the truth is used, not if it is stored
        specs: dict[str, Any] = {"labeled": (str(labeled),), "unlabeled": (str(pool),)}
        data = make(tmp_path / f"out-{number}", **specs, pool_truth=switch)
        assert set(data.pool.labels) == {-1}
        truths.append(dict(zip(data.pool.ids(np.arange(7)), data.pool.truth.tolist(), strict=True)))
    assert truths[0] == truths[1] == dict(zip(names, (1, 2, -1, 0, -1, -1, -1), strict=True))


def test_several_pools_that_are_class_folders_keep_their_truth(tmp_path: Path, labeled: Path) -> None:
    roots = [
        write_folder(tmp_path / name, random_images(2, seed=number + 5), lambda n: f"{n}.png")
        for number, name in enumerate(("c2", "other", "c0"))
    ]
    data = make(tmp_path / "out", labeled=(str(labeled),), unlabeled=tuple(map(str, roots)))
    folders = [name.split("/")[0] for name in data.pool.ids(np.arange(6))]
    assert data.pool.truth.tolist() == [{"c2": 2, "c0": 0}.get(folder, -1) for folder in folders]


def as_tar(folder: Path) -> Path:
    with tarfile.open(folder.with_suffix(".tar"), "w") as archive:
        archive.add(folder, "")
    return folder.with_suffix(".tar")


def as_parquet(folder: Path) -> Path:
    files = sorted(folder.rglob("*.png"))
    columns = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
    pq.write_table(pa.table(columns), folder.with_suffix(".parquet"))
    return folder.with_suffix(".parquet")


@pytest.mark.parametrize("plane", ["resident", "streamed"])
@pytest.mark.parametrize("form", [as_tar, as_parquet])
def test_every_form_gives_the_same_images_and_split(
    tmp_path: Path, labeled: Path, pool: Path, form: Callable[[Path], Path], plane: str
) -> None:
    first = make(tmp_path / "a", labeled=(str(labeled),), unlabeled=(str(pool),))
    second = make(tmp_path / "b", labeled=(str(form(labeled)),), unlabeled=(str(form(pool)),), plane=plane)
    for name in ("labeled", "val", "pool"):
        one, two = getattr(first, name), getattr(second, name)
        assert np.array_equal(one.content_hash, two.content_hash) and np.array_equal(one.labels, two.labels)
        rows = np.array([1, 0])
        assert torch.equal(one.fetch(rows, 8), two.fetch(rows, 8))


def test_arrays_give_the_same_pixels_as_files(tmp_path: Path, labeled: Path) -> None:
    files = make(tmp_path / "a", Sources(open_source([labeled], True)))
    arrays = ArraySource(random_images(30), [f"c{n % 3}" for n in range(30)])
    memory = make(tmp_path / "b", Sources(open_source([arrays], True)), plane="streamed")

    def rows(data: Dataset) -> list[bytes]:
        parts = [part.fetch(np.arange(len(part)), 8) for part in (data.labeled, data.val)]
        return sorted(image.numpy().tobytes() for image in torch.cat(parts))

    assert rows(files) == rows(memory) and len(files.pool) == 0


def test_names_and_order_do_not_matter(tmp_path: Path, labeled: Path, pool: Path) -> None:
    (pool / "c0" / "copy.png").write_bytes((pool / "c1" / "01.png").read_bytes())
    (pool / "c0" / "leak.png").write_bytes((labeled / "c0" / "0000.png").read_bytes())
    before = make(tmp_path / "a", labeled=(str(labeled),), unlabeled=(str(pool),), val_fraction=0.5)
    for root in (labeled, pool):
        for number, file in enumerate(sorted(root.rglob("*.png"), reverse=True)):
            file.rename(file.with_name(f"renamed-{number:04d}.png"))
    after = make(tmp_path / "b", labeled=(str(labeled),), unlabeled=(str(pool),), val_fraction=0.5)
    for name in ("labeled", "val", "pool"):
        assert hashes(getattr(before, name)) == hashes(getattr(after, name))


def test_copies_are_removed_and_written_down(tmp_path: Path, labeled: Path, pool: Path) -> None:
    images = random_images(30)
    val = write_folder(tmp_path / "val", images[:3], lambda n: f"c{n}/v{n}.png")
    test = write_folder(tmp_path / "test", images[3:6], lambda n: f"c{n}/t{n}.png")
    write_folder(pool, images[[0, 3, 10]], lambda n: f"leak/{n}.png")
    write_folder(pool, random_images(1, seed=5), lambda n: "twice/0.png")
    sets = {"labeled": labeled, "unlabeled": pool, "val": val, "test": test}
    specs: dict[str, Any] = {name: (str(path),) for name, path in sets.items()}
    data = make(tmp_path / "out", **specs)
    assert (len(data.labeled), len(data.val), len(data.pool)) == (24, 3, 20)
    assert data.test is not None and len(data.test) == 3
    rows = [tuple(row.values())[:4] for row in table(tmp_path / "out" / "leaks.csv")]
    assert ("pool", "leak/0.png", "val", "c0/v0.png") in rows
    assert ("pool", "leak/1.png", "test", "c0/t0.png") in rows
    assert ("pool", "twice/0.png", "pool", "c0/00.png") in rows
    assert ("labeled", "c1/0001.png", "val", "c1/v1.png") in rows
    assert ("pool", "leak/2.png", "labeled", "c1/0010.png") in rows
    assert len(rows) == 6 + 3 + 1
    assert any("6" not in note and "removed" in note for note in data.notes)


@pytest.mark.parametrize("checks", [1, 2, 3, 4])
def test_a_stopped_scan_leaves_nothing_and_runs_again(
    tmp_path: Path, labeled: Path, pool: Path, checks: int
) -> None:
    config = DataConfig(labeled=(str(labeled),), unlabeled=(str(pool),), resolution=8, workers=0)
    sources, out = open_sources(config), DataDir(tmp_path / "out")
    prepare(config, sources, out, 0, Progress())
    with pytest.raises(Stopped):
        prepare(config, sources, out, 0, StopAfter(checks))
    assert not out.dataset.exists() and not list(out.path.glob(".*"))
    with pytest.raises(RunError, match=r"dataset\.json is missing"):
        open_dataset(out, config, sources)
    assert len(prepared(config, out.path, sources).pool) == 20


def test_opening_again_scans_nothing(
    tmp_path: Path, labeled: Path, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(labeled=(str(labeled),), unlabeled=(str(pool),), resolution=8, workers=0)
    sources, out = open_sources(config), tmp_path / "out"
    first = prepared(config, out, sources)

    def fail(*_: object) -> None:
        raise AssertionError("scanned")

    monkeypatch.setattr(scan, "scan_chunk", fail)
    second = open_dataset(DataDir(out), config, sources)
    assert (first.classes, first.notes) == (second.classes, second.notes)
    rows = np.arange(20)
    assert torch.equal(first.pool.fetch(rows, 8), second.pool.fetch(rows, 8))


def test_workers_scan_with_the_same_result(
    tmp_path: Path, labeled: Path, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pool / "text.jpg").write_text("not an image\n")
    (pool / "cut.png").write_bytes((pool / "c0" / "00.png").read_bytes()[:60])
    specs: dict[str, Any] = {"labeled": (str(labeled),), "unlabeled": (str(pool),), "max_bad_fraction": 0.5}
    make(tmp_path / "alone", **specs)
    monkeypatch.setattr(scan, "_FEW", 0)
    monkeypatch.setattr(scan, "_CHUNK", 3)
    make(tmp_path / "together", **specs, workers=2)
    for name in (
        "manifest.parquet",
        "ledger.csv",
        "leaks.csv",
        "store/pool.npy",
        "store/labeled.npy",
        "dataset.json",
    ):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "together" / name).read_bytes(), name


def test_auto_keeps_what_fits(tmp_path: Path, labeled: Path, pool: Path) -> None:
    gib = 25 * 3 * 8 * 8 / 1024**3  # enough for the 20 images of the pool, not for the 30 labelled ones
    data = make(tmp_path / "out", labeled=(str(labeled),), unlabeled=(str(pool),), resident_gib=gib)
    assert data.pool.resident and not data.labeled.resident and not data.val.resident


def test_what_the_disk_cannot_hold_is_streamed_or_refused_before_it_is_decoded(
    tmp_path: Path, labeled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=30 * 3 * 8 * 8 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert not make(tmp_path / "auto", labeled=(str(labeled),)).labeled.resident
    with pytest.raises(InputError, match=r"labeled takes 5\.6 KiB decoded, 1 bytes more than .* has free"):
        make(tmp_path / "resident", labeled=(str(labeled),), plane="resident")
    assert not list((tmp_path / "resident").iterdir())


@pytest.mark.parametrize("plane", ["resident", "streamed"])
def test_a_subset_and_a_pickle_are_the_same_rows(tmp_path: Path, labeled: Path, plane: str) -> None:
    data = make(tmp_path / "out", labeled=(str(labeled),), plane=plane)
    rows = np.array([5, 2, 9])
    part = data.labeled.subset(rows).subset(np.array([2, 0]))
    again = pickle.loads(pickle.dumps(part))
    expected = data.labeled.fetch(np.array([9, 5]), 8)
    assert len(part) == 2
    for images in (part, again):
        assert torch.equal(images.fetch(np.array([0, 1]), 8), expected)
        assert images.labels.tolist() == data.labeled.labels[[9, 5]].tolist()
        assert images.ids(np.array([0, 1])) == data.labeled.ids(np.array([9, 5]))
        assert np.array_equal(images.content_hash, data.labeled.content_hash[[9, 5]])
    assert len(pickle.dumps(data.labeled)) < 2_000


def test_another_resolution_of_a_stored_square_is_not_cropped_again(tmp_path: Path) -> None:
    flat = np.zeros((4, 256, 256, 3), np.uint8)
    flat[:, :8], flat[:, :, :8] = 255, 255  # a bright border that a second crop would cut away
    flat[:, 100, 100, 0] = np.arange(4)
    data = make(tmp_path / "out", Sources(ArraySource(flat, [0, 0, 1, 1])), resolution=256, val_fraction=0.5)
    assert data.labeled.fetch(np.array([0]), 224)[0, :, 0, 0].tolist() == [255] * 3


def test_progress_counts_every_image(tmp_path: Path, labeled: Path, pool: Path) -> None:
    config = DataConfig(labeled=(str(labeled),), unlabeled=(str(pool),), resolution=8, workers=0)
    progress = Counted()
    prepare(config, open_sources(config), DataDir(tmp_path / "out"), 0, progress)
    assert progress.calls == [("scanning labeled", 30, 30), ("scanning pool", 20, 20)]
