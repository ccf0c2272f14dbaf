"""The measurements of a training as it runs: lines of metrics.jsonl, and the loss for a bar."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from noisystudent.distributed import group
from noisystudent.errors import RunError
from noisystudent.records import Batch
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.journal import Journal

Evaluate = Callable[[nn.Module], dict[str, float]]
"""Model -> scores by name."""
OnLog = Callable[[dict[str, float]], None]
"""Called with each line of metrics.jsonl."""
Show = Callable[[int, float], None]
"""Called with the number of steps done and the mean loss since the last line of metrics.jsonl with a loss."""

_NORMS = ("weights", "moving average of the weights", "moving averages of the confidences")
_SHOWN_SECONDS = 1.0  # least time between two looks at the loss; each lets a GPU wait for the host once


@dataclass(slots=True)
class Log:
    """Writes the measurements of a training.

    Attributes:
        journal: file of the measurements. None: another process writes it.
        lr: step -> learning rate.
        steps_per_epoch: labelled images / labelled images per step.
        on_log: called with each line.
        show: called with step and loss.
        images: number of images since `since`.
        since: time in seconds of the last log line, evaluation or snapshot.
        shown: time in seconds of the last look at the loss between two lines.
    """

    journal: Journal | None
    lr: Callable[[int], float]
    steps_per_epoch: float
    on_log: OnLog | None
    show: Show | None
    images: int = 0
    since: float = field(default_factory=time.perf_counter)
    shown: float = -math.inf

    def write(self, line: dict[str, float]) -> None:
        """Append one line to the file, and call `on_log` with it."""
        if self.journal is not None:
            self.journal.append(line)
        if self.on_log is not None:
            self.on_log(line)

    def count(self, state: TrainState, batch: Batch) -> None:
        """Count the images of a step, and show its loss if the last look at it was a second ago."""
        self.images += sum(batch.counts)
        if self.show is not None and time.perf_counter() - self.shown >= _SHOWN_SECONDS:
            self.shown = time.perf_counter()
            # A copy of one number: the window is not changed.
            self.show(state.step, state.window[0].item() / (state.step - state.logged))

    def write_training(self, state: TrainState) -> None:
        """Log mean loss and top-1 since the last line, and the images per second since `since`."""
        loss, top1 = self._read(state)
        steps = state.step - state.logged
        self.write(
            {
                "step": state.step,
                "epoch": state.step / self.steps_per_epoch,
                "loss": loss / steps,
                "train_top1": top1 / steps,
                "lr": self.lr(state.step - 1),  # `state.step` is incremented already
                "images_per_second": self.images / (time.perf_counter() - self.since),
            }
        )
        if self.show is not None:
            self.show(state.step, loss / steps)
        state.window.zero_()  # in place: a captured CUDA graph adds to this memory
        state.logged = state.step
        self.restart_clock()

    def write_evaluation(self, state: TrainState, evaluate: Evaluate) -> None:
        """Log the scores of the averaged model; the time they take does not count."""
        self._read(state)
        try:
            scores = evaluate(state.ema.module)
        except RunError as error:
            raise RunError(f"the evaluation after step {state.step} failed: {error}") from error
        self.write({"step": state.step, **scores})
        self.restart_clock()

    def check(self, state: TrainState) -> None:
        """Check that all is finite; call it before a snapshot."""
        self._read(state)

    def restart_clock(self) -> None:
        """Start a new measurement of the images per second."""
        self.images, self.since = 0, time.perf_counter()

    def _read(self, state: TrainState) -> tuple[float, float]:
        """Sums of loss and top-1 over the window, after a check that the training has not diverged.

        This and the look in `count` are the only host synchronisations of the loop.
        """
        values = [state.ema.norms()]
        if state.averages is not None:
            values.append(state.averages.norm().view(1))
        all_norms = torch.cat(values)
        group().sum(all_norms)  # a sum is finite if the norms of the shards of all processes are
        loss, top1, *norms = torch.cat([state.window, all_norms]).tolist()
        # Without `averages` there are only the first two norms.
        names = ("loss", *(f"norm of the {name}" for name in _NORMS[: len(norms)]))
        for name, value in zip(names, (loss, *norms), strict=True):
            if not math.isfinite(value):
                raise RunError(
                    f"the {name} became {value} in steps {state.logged + 1} to {state.step}, at a learning"
                    f" rate of {self.lr(state.step - 1):.3g}; decrease train.lr (finetune.lr in a"
                    " fine-tuning), increase train.warmup_epochs or set train.clip_norm"
                )
        return loss, top1
