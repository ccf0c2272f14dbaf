"""Properties of the sampler; batches do not depend on workers, plane or first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded, labeled_folder, prepared, random_images, write_folder
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import shared_cache

from noisystudent.config import DataConfig
from noisystudent.data import loader
from noisystudent.data.imageset import ImageSet
from noisystudent.data.loader import OnlineTeacher, SelectedPool, joint_batches, requested_batches
from noisystudent.data.prepare import Dataset
from noisystudent.data.sampler import Sampler
from noisystudent.distributed import Group
from noisystudent.errors import RunError
from noisystudent.records import Batch

CPU = torch.device("cpu")
Plane = Literal["resident", "streamed"]


def clean(
    images: ImageSet, rows: NDArray[np.int64], batch_size: int, side: int, workers: int
) -> Iterator[Tensor]:
    parts = np.split(rows, range(batch_size, len(rows), batch_size))
    return requested_batches(images, iter(parts), resolution=side, device=CPU, workers=workers)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 90), seed=st.integers(0, 3), epochs=st.integers(1, 3))
def test_each_epoch_is_a_permutation(n: int, batch: int, seed: int, epochs: int) -> None:
    steps = -(-n * epochs // batch)
    drawn = np.concatenate([Sampler(n, batch, seed, "labeled").at(step) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(drawn[epoch * n : (epoch + 1) * n]) == list(range(n))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 30), times=st.integers(1, 5), step=st.integers(0, 5))
def test_the_order_does_not_depend_on_the_batch_size(n: int, batch: int, times: int, step: int) -> None:
    large = Sampler(n, batch * times, 7, "pool").at(step)
    small = [Sampler(n, batch, 7, "pool").at(step * times + part) for part in range(times)]
    assert np.array_equal(large, np.concatenate(small))


def test_names_and_seeds_differ() -> None:
    orders = {tuple(Sampler(50, 50, seed, name).at(0)) for seed in (0, 1) for name in ("labeled", "pool")}
    assert len(orders) == 4


def made(tmp_path: Path, plane: Plane) -> Dataset:
    labeled = labeled_folder(tmp_path / "labeled", 12)
    pool = write_folder(tmp_path / "pool", random_images(10, seed=5), lambda n: f"x/{n}.png")
    config = DataConfig(labeled=(str(labeled),), unlabeled=(str(pool),), resolution=8, plane=plane, workers=0)
    return prepared(config, tmp_path / plane)


def selected_pool() -> SelectedPool:
    table = np.random.default_rng(0).random((3, 3), dtype=np.float32)
    return SelectedPool(np.array([7, 2, 4]), np.array([3, 0, 1], np.int32), lambda at: table[at])


def quarter(stream: str, step: int, sizes: np.ndarray) -> np.ndarray:
    assert stream in ("labeled", "pool") and sizes.shape[1] == 2
    return np.tile(np.array([0.0, 0.25, 0.5, 0.5], np.float32), (len(sizes), 1))


def batches(data: Dataset, start: int = 0, workers: int = 0, boxes: object = None) -> list[Batch]:
    return list(
        joint_batches(
            data.labeled, data.pool, selected_pool(), labeled_batch=4, pool_batch=3, resolution=8, seed=1,
            start=start, stop=5, device=CPU, workers=workers, boxes=boxes,  # type: ignore[arg-type]
        )
    )  # fmt: skip


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(left, right, strict=True)
        for name in ("images", "labels", "pool_targets")
    )


@pytest.mark.parametrize("boxes", [None, quarter])
def test_batches_are_the_same_from_memory_from_files_and_by_workers(tmp_path: Path, boxes: object) -> None:
    resident, streamed = made(tmp_path, "resident"), made(tmp_path, "streamed")
    assert resident.labeled.resident and not streamed.labeled.resident
    expected = batches(resident, boxes=boxes)
    assert same(expected, batches(streamed, boxes=boxes))
    assert same(expected, batches(streamed, workers=2, boxes=boxes))
    assert same(expected, batches(resident, workers=1, boxes=boxes))
    assert same(expected[3:], batches(streamed, start=3, boxes=boxes))


def test_a_large_jpeg_has_its_own_size_and_one_clean_view_from_memory_from_files_and_by_workers(
    tmp_path: Path,
) -> None:
    for number, pixels in enumerate(random_images(4, 300)):
        path = tmp_path / "large" / f"c{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels[: 200 + number], "JPEG"))
    config = DataConfig(labeled=(str(tmp_path / "large"),), resolution=16, val_fraction=0.5, workers=0)
    planes = (replace(config, plane="resident"), replace(config, plane="streamed"))
    stored, streamed = (prepared(plane, tmp_path / plane.plane).labeled for plane in planes)
    rows = np.arange(2)
    heights = [200 + int(name[3]) for name in streamed.ids(rows)]
    assert streamed.view_sizes(rows).tolist() == [[height, 300] for height in heights]
    (by_workers,) = clean(streamed, rows, 2, 16, workers=1)
    assert torch.equal(stored.fetch(rows, 16), streamed.fetch(rows, 16))
    assert torch.equal(stored.fetch(rows, 16), by_workers)


def test_rows_carry_their_own_labels_and_targets(tmp_path: Path) -> None:
    data, selected = made(tmp_path, "resident"), selected_pool()
    assert not isinstance(selected.targets, OnlineTeacher)
    for step, batch in enumerate(batches(data)):
        rows = Sampler(len(data.labeled), 4, 1, "labeled").at(step)
        assert torch.equal(batch.images[:4], data.labeled.fetch(rows, 8))
        assert batch.labels.tolist() == data.labeled.labels[rows].tolist()
        at = np.array([0, 0, 0, 2])[Sampler(4, 3, 1, "pool").at(step)]
        assert torch.equal(batch.images[4:], data.pool.fetch(selected.rows[at], 8))
        assert np.array_equal(batch.pool_targets.numpy(), selected.targets(at))


def test_labels_alone_give_no_pool_rows(tmp_path: Path) -> None:
    data = made(tmp_path, "resident")
    (batch,) = joint_batches(
        data.labeled, None, None, labeled_batch=40, pool_batch=0, resolution=16, seed=0,
        start=2, stop=3, device=CPU, workers=0,
    )  # fmt: skip
    assert batch.images.shape == (40, 3, 16, 16)
    assert batch.pool_targets.shape == (0, 3)


@pytest.mark.parametrize("plane", ["resident", "streamed"])
def test_clean_batches_keep_order_and_end_short(tmp_path: Path, plane: Plane) -> None:
    data = made(tmp_path, plane)
    rows = np.array([3, 1, 9, 0, 5])
    parts = list(clean(data.pool, rows, 2, 8, workers=0))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat(parts), data.pool.fetch(rows, 8))


def test_delivered_batches_leave_no_objects_in_memory(tmp_path: Path) -> None:
    data, seen = made(tmp_path, "streamed"), []
    for _ in clean(data.pool, np.arange(10), 1, 8, workers=1):
        seen.append(len(shared_cache))
    assert len(seen) == 10 and max(seen[1:]) <= 3, "the first batch frees the objects of other tests"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_changed_stops_the_run_in_one_line(tmp_path: Path, workers: int) -> None:
    data = made(tmp_path, "streamed")
    changed = tmp_path / "pool" / "x" / "3.png"
    changed.write_bytes((tmp_path / "pool" / "x" / "4.png").read_bytes())
    with pytest.raises(RunError, match=r"^[^\n]*x/3.png changed[^\n]*$"):
        list(clean(data.pool, np.arange(10), 4, 8, workers))
    changed.unlink()
    with pytest.raises(RunError, match=r"x/3.png cannot be read"):
        data.pool.fetch(np.array([3]), 8)


@pytest.mark.parametrize("machines", [1, 2, 4])
def test_the_images_of_a_window_are_fetched_by_the_machine_that_draws_them(
    tmp_path: Path, machines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 processes, on their machines, fetch in each window (2 steps) all images of the next one."""
    data, processes = made(tmp_path, "streamed"), 4 // machines
    repeats = np.array([6, 7, 11], np.int32)
    selected = SelectedPool(np.array([7, 2, 4]), repeats, lambda at: np.zeros((len(at), 3), np.float32), 8)
    for machine in range(machines):
        drawn: list[set[int]] = [set() for _ in range(6)]
        ahead: list[set[int]] = [set() for _ in range(6)]
        for local_rank in range(processes):
            process = Group()
            process.rank, process.size = machine * processes + local_rank, 4
            process.machine = range(machine * processes, (machine + 1) * processes)
            monkeypatch.setattr(loader, "group", lambda process=process: process)
            joint = loader._Joint(data.labeled, data.pool, selected, (4, 4), seed=1, offsets=(0, 0))
            for step in range(12):
                _, part = joint.parts(step, joint.draw(step), None)
                assert part.ahead is not None
                drawn[step // 2] |= set(part.rows.tolist())
                ahead[step // 2] |= set(part.ahead.tolist())
        assert ahead[:-1] == drawn[1:]


def test_an_empty_selection_is_a_clear_error(tmp_path: Path) -> None:
    data = made(tmp_path, "resident")
    none = SelectedPool(
        np.empty(0, np.int64), np.empty(0, np.int32), lambda at: np.zeros((len(at), 3), np.float32)
    )
    with pytest.raises(RunError, match="pool set has no image"):
        next(
            joint_batches(
                data.labeled, data.pool, none, labeled_batch=4, pool_batch=3, resolution=8, seed=1,
                start=0, stop=1, device=CPU, workers=0,
            )
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("plane", ["resident", "streamed"])
def test_a_gpu_receives_the_same_batches(tmp_path: Path, plane: Plane, workers: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device, data = torch.device("cuda"), made(tmp_path, plane)
    on_gpu = data.to_device(device)
    for boxes in (None, quarter):
        moved = list(
            joint_batches(
                on_gpu.labeled, on_gpu.pool, selected_pool(), labeled_batch=4, pool_batch=3, resolution=8,
                seed=1, start=0, stop=5, device=device, workers=workers, boxes=boxes,
            )
        )  # fmt: skip
        assert all(batch.images.is_cuda and batch.labels.is_cuda for batch in moved)
        back = [Batch(b.images.cpu(), b.labels.cpu(), b.pool_targets.cpu()) for b in moved]
        assert same(back, batches(data, boxes=boxes))
