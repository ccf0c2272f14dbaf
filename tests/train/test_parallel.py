"""A training does not depend on the number of processes, nor on how they divide batches and weights."""

from __future__ import annotations

import json
import shutil
import weakref
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
from tiny_training import CLASSES, LABELED, POOL, Killed, TinyNet, TinyNoise, make_batches
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from noisystudent.config import TrainConfig
from noisystudent.console import Progress
from noisystudent.distributed import group
from noisystudent.records import Batch
from noisystudent.run.rundir import ModelDir
from noisystudent.train import checkpoint
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.ema_teacher import EmaTeacher
from noisystudent.train.execution import Executor
from noisystudent.train.loop import fit, initial_state
from noisystudent.train.parallel import assemble, full, shard
from noisystudent.train.snapshots import Snapshots
from noisystudent.train.step import TrainStep

Weights = dict[str, NDArray[Any]]
Trained = tuple[Weights, list[float]]
"""Averaged weights, and the loss of each step."""


class Wide(TinyNet):
    """The small network in float64, where the order of a sum leaves no trace, with a block to divide."""

    def __init__(self, norm: bool = True, most: int = LABELED + POOL) -> None:
        torch.manual_seed(0)
        super().__init__()
        self._most = most  # images that there is memory for
        if not norm:
            self.norm = nn.Identity()  # type: ignore[assignment]
        self.blocks = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 6))
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self._most:
            raise torch.OutOfMemoryError(f"{len(images)} images do not fit")
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


def definition(teacher: EmaTeacher | None = None, **options: Any) -> TrainStep:
    """The step of the small network."""
    defaults = {"log_steps": 1, "lr": 8.0, "batch_size": LABELED, "clip_norm": 1.0, "ema_decay": 0.9}
    return TrainStep(
        noise=TinyNoise(lambda batch, _: batch.images, lambda _batch, _step: None),
        lr=lambda _: 0.1,
        config=TrainConfig(**(defaults | options)),
        num_classes=CLASSES,
        dtype=torch.float32,
        teacher=teacher,
    )


def train(
    folder: Path,
    steps: int,
    *,
    norm: bool = True,
    most: int = LABELED + POOL,
    teacher: EmaTeacher | None = None,
    killed_at: int | None = None,
    **options: Any,
) -> Trained | None:
    """Train the small network; None if it was killed."""
    batches = partial(shared_batches, killed_at=killed_at)
    place = ModelDir(folder)
    try:
        average = fit(
            Wide(norm, most),
            batches,
            definition(teacher, **options),
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


def test_more_processes_continue_a_training_in_parts_of_which_none_is_empty(run: Run, tmp_path: Path) -> None:
    """Memory was short for one process, so that it went on in 4 parts: as many as 4 labelled images."""
    options = {"most": 3, "checkpoint_steps": 5}
    assert run(1, 20, name="one", killed_at=12, **options) == [None]
    (alone,) = run(1, 20, **options)
    assert alone is not None
    for size in (1, 2, 4):
        shutil.copytree(tmp_path / "one", tmp_path / f"continued-{size}")
        first, *others = run(size, 20, name=f"continued-{size}", **options)
        assert first is not None and all(equal(other, first) for other in others)
        assert first[0]["norm.num_batches_tracked"] == 10 * 4 + 10 * LABELED // size
        # Batch norm sees the parts of all processes together, so that these are larger.
        np.testing.assert_allclose(first[1], alone[1], rtol=0, atol=0.05 if size > 1 else 0)


@PARALLEL
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(run: Run, parallel: str) -> None:
    options = {"parallel": parallel, "checkpoint_steps": 5, "log_steps": 4}  # a line is of steps before, too
    straight = run(3, 16, **options)
    assert run(3, 16, name="cut", killed_at=12, **options) == [None] * 3
    for resumed in run(3, 16, name="cut", **options):
        assert equal(resumed, straight[0])


def sharded_devices() -> set[str]:
    """Devices of the shards of a model on the CPU, where torch would choose a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._C, "_get_accelerator", lambda: torch.device("cuda"))
        shard(model := Wide())
    return {parameter.device.type for parameter in model.parameters()}


def test_a_model_on_the_cpu_is_sharded_there_on_a_machine_with_a_gpu() -> None:
    assert together(2, sharded_devices) == [{"cpu"}] * 2


class Gathered:
    """Counts the whole tensors that sharded ones are gathered to, and how many of them live at once."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.most, self._living = 0, 0, weakref.WeakSet[Tensor]()
        self._gather = DTensor.full_tensor
        patch.setattr(DTensor, "full_tensor", lambda tensor: self._counted(tensor))

    def _counted(self, tensor: DTensor) -> Tensor:
        whole = self._gather(tensor)
        self._living.add(whole)
        self.count, self.most = self.count + 1, max(self.most, len(self._living))
        return whole


def sharded(folder: Path, parallel: str) -> tuple[TrainState, dict[str, Tensor]]:
    """State after three steps with a snapshot, and all of its whole tensors."""
    step = definition(parallel=parallel, optimizer="adamw")
    state = initial_state(Wide(), step)
    execute, place = Executor(step, state, Progress(), 3), ModelDir(folder)
    for batch in shared_batches(0, 3):
        execute(batch)
    expected = {name: full(tensor).clone() for name, tensor in checkpoint.contents(state).items()}
    if group().is_main:
        folder.mkdir()
        place.metrics.touch()
    with pytest.MonkeyPatch.context() as patch, Snapshots(state, place, None, Progress()) as snapshots:
        gathered = Gathered(patch)
        snapshots.take()
        assert gathered.most == (1 if parallel == "fsdp" else 0), "the device holds one, in every process"
        if state.whole is not None:
            assemble(state.whole, state.ema.module)
            assert gathered.most == 1 and gathered.count > 40, "of model, average and optimiser"
    group().any()  # process 0 has written it
    return state, expected


def saved(folder: Path, parallel: str) -> dict[str, str]:
    """Names, types and shapes in a snapshot, which holds the state of the training that took it."""
    state, expected = sharded(folder, parallel)
    with torch.no_grad():
        for tensor in checkpoint.contents(state).values():
            tensor.zero_()
    path = ModelDir(folder).checkpoints / "step-00000003"
    checkpoint.load(state, path)
    for name, tensor in checkpoint.contents(state).items():
        assert torch.equal(full(tensor), expected[name]), name
    return checkpoint._index(path)


def test_a_snapshot_of_shards_is_that_of_whole_weights_of_which_one_is_gathered_at_a_time(
    tmp_path: Path,
) -> None:
    of_weights, _ = together(2, saved, tmp_path / "ddp", "ddp")
    assert together(2, saved, tmp_path / "fsdp", "fsdp") == [of_weights] * 2
