"""A training does not depend on the number of processes, nor on how they divide batches and weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from processes import together
from tiny_training import CLASSES, LABELED, Killed, TinyNet, TinyNoise, make_batches
from torch import Tensor, nn

from noisystudent.config import TrainConfig
from noisystudent.console import Progress
from noisystudent.distributed import group
from noisystudent.records import Batch
from noisystudent.run.rundir import ModelDir
from noisystudent.train.ema_teacher import EmaTeacher
from noisystudent.train.loop import fit
from noisystudent.train.step import TrainStep

Weights = dict[str, NDArray[Any]]
Trained = tuple[Weights, list[float]]
"""Averaged weights, and the loss of each step."""


class Wide(TinyNet):
    """The small network in float64, where the order of a sum leaves no trace, with a block to divide."""

    def __init__(self, norm: bool = True) -> None:
        torch.manual_seed(0)
        super().__init__()
        if not norm:
            self.norm = nn.Identity()  # type: ignore[assignment]
        self.blocks = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 6))
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.conv(images.double() / 255))).mean((2, 3))
        logits: Tensor = self.head(features + self.blocks(features))
        return logits


def shared_batches(start: int, stop: int, killed_at: int | None = None) -> Iterator[Batch]:
    """The part of this process of each batch: 4 labelled and 5 pool images of all processes."""
    for step, batch in zip(range(start, stop), make_batches(start, stop), strict=True):
        if step == killed_at:
            raise Killed
        counts = len(batch.labels), len(batch.pool_targets)
        labeled, pool = (torch.arange(count)[group().rows(count)] for count in counts)
        yield replace(
            batch,
            images=batch.images[torch.cat([labeled, pool + counts[0]])],
            labels=batch.labels[labeled],
            pool_targets=batch.pool_targets[pool],
            whole=counts,
        )


def train(
    folder: Path,
    steps: int,
    *,
    norm: bool = True,
    teacher: EmaTeacher | None = None,
    killed_at: int | None = None,
    **options: Any,
) -> Trained | None:
    """Train the small network; None if it was killed."""
    defaults = {"log_steps": 1, "lr": 8.0, "batch_size": LABELED, "clip_norm": 1.0, "ema_decay": 0.9}
    step = TrainStep(
        noise=TinyNoise(lambda batch, _: batch.images, lambda _batch, _step: None),
        lr=lambda _: 0.1,
        config=TrainConfig(**(defaults | options)),
        num_classes=CLASSES,
        dtype=torch.float32,
        teacher=teacher,
    )
    batches = partial(shared_batches, killed_at=killed_at)
    place = ModelDir(folder)
    try:
        average = fit(
            Wide(norm),
            batches,
            step,
            total_steps=steps,
            steps_per_epoch=6.0,
            folder=place,
            progress=Progress(),
        )
    except Killed:
        return None
    lines = [json.loads(line) for line in place.metrics.read_text().splitlines()]
    weights = {name: tensor.numpy() for name, tensor in average.state_dict().items()}
    return weights, [line["loss"] for line in lines]


def near(one: Trained | None, other: Trained | None, tolerance: float = 1e-5) -> bool:
    assert one is not None and other is not None
    assert len(one[1]) == len(other[1])
    differences = [np.abs(np.subtract(one[1], other[1])).max()]
    differences += [np.abs(one[0][name] - other[0][name]).max() for name in one[0]]
    assert one[0].keys() == other[0].keys()
    return bool(max(differences) < tolerance)


def equal(one: Trained | None, other: Trained | None) -> bool:
    return near(one, other, np.nextafter(0.0, 1.0))


Run = Callable[..., list[Trained | None]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run(size, steps, name=…, **options of train)`: what each of the processes returns."""

    def call(size: int, steps: int, *, name: str = "", **options: Any) -> list[Trained | None]:
        folder = tmp_path / (name or f"{size}-{len(list(tmp_path.iterdir()))}")
        call = partial(train, folder, steps, **options)
        return [call()] if size == 1 else together(size, call)

    return call


ADAPTIVE = EmaTeacher(adaptive=True, fairness=0.1, temperature=0.5)


@pytest.mark.parametrize(
    "teacher", [None, pytest.param(EmaTeacher(threshold=0.4), marks=pytest.mark.slow), ADAPTIVE]
)
def test_losses_of_50_steps_do_not_depend_on_the_number_of_processes(
    run: Run, teacher: EmaTeacher | None
) -> None:
    (alone,) = run(1, 50, teacher=teacher)
    for size in (2, 4):  # 5 pool images are a multiple of neither
        for shared in run(size, 50, teacher=teacher):
            assert near(shared, alone)


def test_batch_norm_that_is_not_synchronised_is_another_training_with_equal_weights_everywhere(
    run: Run,
) -> None:
    (alone,) = run(1, 20)
    first, second = run(2, 20, sync_batchnorm=False)
    assert equal(first, second)
    assert not near(first, alone)


@pytest.mark.parametrize(
    "optimizer", ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "rmsprop_tf"))]
)
def test_fsdp_is_ddp(run: Run, optimizer: str) -> None:
    ddp, _ = run(2, 20, optimizer=optimizer)
    for fsdp in run(2, 20, optimizer=optimizer, parallel="fsdp", teacher=None):
        assert near(fsdp, ddp)


@pytest.mark.parametrize("size", [1, 2])
def test_parts_of_a_batch_one_after_the_other_are_the_whole_batch(run: Run, size: int) -> None:
    (whole,) = run(1, 20, norm=False)
    for shared in run(size, 20, norm=False, accumulate=2):
        assert near(shared, whole)


PARALLEL = pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])


@PARALLEL
def test_a_snapshot_of_four_processes_is_continued_by_any_number(
    run: Run, tmp_path: Path, parallel: str
) -> None:
    (alone,) = run(1, 20)
    assert run(4, 20, name="four", killed_at=12, checkpoint_steps=5, parallel=parallel) == [None] * 4
    for size in (1, 2, 3, 4):
        shutil.copytree(tmp_path / "four", tmp_path / f"continued-{size}")
        for continued in run(size, 20, name=f"continued-{size}", parallel=parallel):
            assert near(continued, alone)


@PARALLEL
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(run: Run, parallel: str) -> None:
    options = {"parallel": parallel, "checkpoint_steps": 5, "log_steps": 4}  # a line is of steps before, too
    straight = run(3, 16, **options)
    assert run(3, 16, name="cut", killed_at=12, **options) == [None] * 3
    for resumed in run(3, 16, name="cut", **options):
        assert equal(resumed, straight[0])
