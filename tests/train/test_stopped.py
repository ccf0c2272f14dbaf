"""A signal stops a training and its loader; the training resumes with other log settings."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tiny_training import Training, flip_some, make_batches
from torch import Tensor

from noisystudent.console import Progress, stop_on_signal
from noisystudent.errors import RunError, Stopped
from noisystudent.records import Batch

Make = Callable[..., Training]


def lines(run: Training) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def stopping_at(step: int, progress: Progress) -> Callable[[Batch, int], Tensor]:
    def augment(batch: Batch, current: int) -> Tensor:
        if current == step:
            progress.stop.signal = "SIGTERM"
        return flip_some(batch, current)

    return augment


def test_a_line_is_the_mean_since_the_one_before_though_lines_come_more_often_now(training: Make) -> None:
    every = training("every", log_steps=1)
    every.run()
    progress = Progress()
    with pytest.raises(Stopped):
        training("cut", log_steps=5, progress=progress, changes={"augment": stopping_at(7, progress)}).run()
    resumed = training("cut", log_steps=3)
    resumed.run()
    steps = [0, *(int(line["step"]) for line in lines(resumed))]
    assert steps[:4] == [0, 5, 9, 12]
    for line, before in zip(lines(resumed), steps, strict=False):
        for key in ("loss", "train_top1"):
            since = [other[key] for other in lines(every)[before : int(line["step"])]]
            assert line[key] == pytest.approx(np.mean(since), rel=1e-5)


def test_sigterm_ends_a_step_later_with_a_snapshot(training: Make) -> None:
    def signalling(batch: Batch, step: int) -> Tensor:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return flip_some(batch, step)

    progress = Progress()
    with pytest.raises(Stopped, match="SIGTERM"), stop_on_signal(progress):
        training(progress=progress, changes={"augment": signalling}).run()
    snapshots = training().folder / "checkpoint"
    assert [path.name for path in snapshots.iterdir()] == ["step-00000005"]


@pytest.mark.parametrize("signalled", [True, False])
def test_a_loader_that_dies_of_the_signal_too_loses_no_step(training: Make, signalled: bool) -> None:
    progress = Progress()

    def dying(start: int, stop: int) -> Iterator[Batch]:
        yield from make_batches(start, 9)
        progress.stop.signal = "SIGTERM" if signalled else None
        raise RunError("a decoding worker died")

    with pytest.raises(Stopped if signalled else RunError):
        training(progress=progress, changes={"batches": dying}).run()
    newest = max(path.name for path in (training().folder / "checkpoint").iterdir())
    assert newest == ("step-00000009" if signalled else "step-00000007")


@pytest.mark.parametrize("signalled", [True, False])
def test_what_fails_after_a_signal_was_stopped(signalled: bool) -> None:
    progress = Progress()
    with pytest.raises(Stopped if signalled else RunError), stop_on_signal(progress):
        progress.stop.signal = "SIGTERM" if signalled else None
        raise RunError("a worker died while the images were scanned")
