"""Batches on a GPU: from its memory, from files and with labels of an online teacher, without waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from device_training import in_thread
from pretend_gpu import Gpu

from noisystudent.console import Progress
from noisystudent.data import loader
from noisystudent.data.loader import OnlineTeacher, SelectedPool, joint_batches
from noisystudent.data.prepare import Dataset, open_dataset, prepare
from noisystudent.data.sources import open_sources
from noisystudent.records import Batch
from noisystudent.run.rundir import DataDir

Opened = Callable[[str], Dataset]
STEPS = 3


@pytest.fixture(scope="module")
def opened(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """The tiny images on this plane, read on the CPU."""

    @cache
    def made(plane: str) -> Dataset:
        config = tiny.config(images, ("data.plane", plane)).data
        sources, out = open_sources(config), DataDir(tmp_path_factory.mktemp(plane))
        prepare(config, sources, out, 0, Progress())
        return open_dataset(out, config, sources)

    return made


def batches(data: Dataset, device: str, targets: Any, boxes: Any = None, workers: int = 0) -> Iterator[Batch]:
    selected = SelectedPool(np.arange(30), np.ones(30, np.int32), targets)
    return joint_batches(
        data.labeled, data.pool, selected, labeled_batch=6, pool_batch=24, resolution=tiny.SIDE, seed=0,
        start=0, stop=STEPS, device=torch.device(device), workers=workers, boxes=boxes,
    )  # fmt: skip


def stored(classes: int) -> Callable[[Any], Any]:
    return lambda at: np.eye(classes, dtype=np.float32)[at % classes]


def quarter(stream: str, step: int, sizes: Any) -> Any:
    return np.tile(np.array([0.0, 0.25, 0.5, 0.5], np.float32), (len(sizes), 1))


def quietly(gpu: Gpu, batches: Iterator[Batch]) -> list[Batch]:
    """The batches; the host may not wait for any but the first."""
    found = [next(batches)]
    with gpu.silent():
        found.extend(batches)
    return found


def require_same(gpu_batches: list[Batch], cpu_batches: list[Batch]) -> None:
    assert len(gpu_batches) == len(cpu_batches) == STEPS
    for moved, batch in zip(gpu_batches, cpu_batches, strict=True):
        for name in ("images", "labels", "pool_targets"):
            assert getattr(moved, name).is_cuda
            assert torch.equal(getattr(moved, name).cpu(), getattr(batch, name)), name


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
@pytest.mark.parametrize("classes", [3, 1000])
@pytest.mark.parametrize(("plane", "boxes"), [("resident", None), ("streamed", None), ("streamed", quarter)])
def test_batches_come_without_waiting(
    opened: Opened,
    gpu: Gpu,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    classes: int,
    plane: str,
    boxes: Any,
) -> None:
    data = opened(plane)
    assert data.labeled.resident == (plane == "resident")
    expected = list(batches(data, "cpu", stored(classes), boxes))
    monkeypatch.setattr(loader, "in_workers", in_thread)
    moved = batches(data.to_device(torch.device(device)), device, stored(classes), boxes, workers=1)
    require_same(quietly(gpu, moved), expected)


def test_one_set_in_gpu_memory_and_one_in_files(
    opened: Opened, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = replace(opened("resident").to_device(torch.device("cuda")), pool=opened("streamed").pool)
    monkeypatch.setattr(loader, "in_workers", in_thread)
    moved = list(batches(mixed, "cuda", stored(3), workers=1))
    require_same(moved, list(batches(opened("resident"), "cpu", stored(3))))


@pytest.mark.parametrize("plane", ["resident", "streamed"])
def test_an_online_teacher_labels_without_waiting(
    opened: Opened, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, plane: str
) -> None:
    def probs(images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3)).softmax(1)

    data, teacher = opened(plane), OnlineTeacher(tiny.SIDE, probs)
    expected = list(batches(data, "cpu", teacher))
    monkeypatch.setattr(loader, "in_workers", in_thread)
    moved = batches(data.to_device(torch.device("cuda")), "cuda", teacher, workers=1)
    require_same(quietly(gpu, moved), expected)
