"""A thread writes snapshots of the step they were taken at, one a minute, and none of its errors is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny import Remembered
from tiny_training import Training, make_batches
from torch import Tensor

from noisystudent.console import Progress
from noisystudent.errors import RunError
from noisystudent.records import Batch
from noisystudent.run.rundir import ModelDir
from noisystudent.train import checkpoint, loop
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.snapshots import Snapshots

Make = Callable[..., Training]


def names(run: Training) -> list[str]:
    return sorted(path.name for path in ModelDir(run.folder).checkpoints.iterdir())


def started(run: Training, steps: int) -> TrainState:
    """State after some steps."""
    run.total_steps = steps
    seen: list[TrainState] = []

    def keep(state: TrainState, *rest: object) -> tuple[TrainState, Path | None]:
        seen.append(state)
        return state, None

    original = loop._start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_start", lambda *arguments: keep(*original(*arguments)))
        run.run()
    return seen[0]


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop_tf", "adamw"])
def test_a_snapshot_holds_the_step_it_was_taken_at_though_the_training_goes_on(
    training: Make, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    run = training(optimizer=optimizer)
    state, folder = started(run, 4), ModelDir(run.folder)
    expected = {name: tensor.clone() for name, tensor in checkpoint.contents(state).items()}
    gate, write = threading.Event(), checkpoint.write

    def held(tensors: dict[str, Tensor], *rest: Path | bytes) -> None:
        assert gate.wait(60)
        write(tensors, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "write", held)
    with Snapshots(state, folder, None, Progress()) as snapshots:
        snapshots.take()
        with torch.no_grad():
            for tensor in checkpoint.contents(state).values():
                tensor.zero_()
        folder.metrics.write_text("a later line")
        gate.set()
        snapshots.wait()
        checkpoint.load(state, folder.checkpoints / "step-00000004")
    for name, tensor in checkpoint.contents(state).items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.stride() == expected[name].stride(), name
    assert b"a later line" not in checkpoint.journal(folder.checkpoints / "step-00000004").read_bytes()


@pytest.mark.parametrize(("pause", "steps"), [(20.0, [18, 21]), (70.0, [22, 23]), (2.0, [])])
def test_without_a_number_of_steps_there_is_one_a_minute(
    training: Make, monkeypatch: pytest.MonkeyPatch, pause: float, steps: list[int]
) -> None:
    clock, waited = [0.0], Snapshots.due

    def batches(start: int, stop: int) -> Iterator[Batch]:
        for batch in make_batches(start, stop):
            clock[0] += pause  # seconds of this step
            yield batch

    def due(self: Snapshots) -> bool:
        self.wait()  # otherwise a slow disk would postpone the next snapshot
        return waited(self)

    run = training(checkpoint_steps=None, changes={"batches": batches})
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Snapshots, "due", due)
    run.run()
    assert steps == ([int(name.removeprefix("step-")) for name in names(run)] if steps else [])
    assert ModelDir(run.folder).checkpoints.exists() == bool(steps)


def failing(at: int) -> Callable[..., None]:
    """`checkpoint.write` on a disk that is full from the snapshot of step `at` on."""
    write = checkpoint.write

    def full(tensors: dict[str, Tensor], *rest: Path | bytes) -> None:
        if int(tensors["step"]) >= at:
            raise RunError("cannot write it: No space left on device")
        write(tensors, *rest)  # type: ignore[arg-type]

    return full


@pytest.mark.parametrize("total_steps", [24, 15])
def test_a_snapshot_that_could_not_be_written_ends_the_training(
    training: Make, monkeypatch: pytest.MonkeyPatch, total_steps: int
) -> None:
    run = training(total_steps=total_steps)
    monkeypatch.setattr(checkpoint, "write", failing(14))
    with pytest.raises(RunError, match="No space left on device"):
        run.run()
    assert names(run) == ["step-00000007"]


def test_another_error_of_the_training_does_not_hide_that_of_the_snapshot(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, progress = threading.Event(), Remembered()
    full = failing(7)

    def late(*arguments: object) -> None:
        assert gate.wait(60)
        full(*arguments)

    def broken(start: int, stop: int) -> Iterator[Batch]:
        yield from make_batches(start, 7)
        gate.set()
        raise RunError("a worker died")

    monkeypatch.setattr(checkpoint, "write", late)
    with pytest.raises(RunError, match="a worker died"):
        training(progress=progress, changes={"batches": broken}).run()
    assert progress.lines == ["cannot write it: No space left on device"]
