"""fit(): the training loop, its log, its looks at val and its exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from noisystudent.config import TrainConfig
from noisystudent.errors import RunError
from noisystudent.records import Batch
from noisystudent.runtime import StopFlag
from noisystudent.train import checkpoint
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.ema import Ema
from noisystudent.train.execution import Executor
from noisystudent.train.journal import Journal
from noisystudent.train.optim import build_optimizer, lr_at
from noisystudent.train.step import Noise, TrainStep

Batches = Callable[[int, int], Iterator[Batch]]
Evaluate = Callable[[nn.Module], dict[str, float]]
OnLog = Callable[[dict[str, float]], None]

_LOOKS = 10  # at val in a training, when the configuration leaves it open


def fit(
    model: nn.Module,
    *,
    batches: Batches,
    noise: Noise,
    config: TrainConfig,
    total_steps: int,
    steps_per_epoch: float,
    num_classes: int,
    hard_pool: bool,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    stop: StopFlag,
    lr: Callable[[int], float] | None = None,
    pool_temperature: float = 1.0,
    evaluate: Evaluate | None = None,
    on_log: OnLog | None = None,
    notify: Callable[[str], None] | None = None,
) -> nn.Module:
    """Train `model`, going on from the latest snapshot in `folder/checkpoint` if there is one.

    An interrupted and resumed training gives the weights of an uninterrupted one, bit for bit on a CPU, and
    the same `folder/metrics.jsonl` but for `images_per_second`.

    Args:
        model: float32 parameters, noise off; moved to `device` and trained in place.
        batches: (start, stop) -> the batches of steps start … stop-1, each a pure function of its step.
        noise: of images and model; `noise.draw` is called before each step.
        config: how to train; `epochs` and `steps` are not read.
        total_steps: optimiser steps.
        steps_per_epoch: labelled images / labelled images a step.
        num_classes: K.
        hard_pool: learn the most likely class of each pool row in place of its probabilities.
        folder: gets `checkpoint/` and `metrics.jsonl`.
        device: where to train.
        dtype: of the forward pass.
        stop: asked before each step.
        lr: step -> learning rate. None: the schedule of `config` over these steps.
        pool_temperature: see `joint_loss`.
        evaluate: given the averaged model every `config.eval_steps` and at the end; its answer is logged.
        on_log: sees each line of metrics.jsonl.
        notify: told how steps are executed.

    Returns:
        The averaged model in evaluation mode.

    Raises:
        RunError: the loss is not finite, the disk is full, or the snapshot is of another training.
        Stopped: `stop` was set; a snapshot of the last step is on disk.
    """
    state = _start(model, config, folder / "checkpoint", device)
    if state.step > total_steps:
        raise RunError(
            f"the checkpoint in {folder} is at step {state.step} of {total_steps}; delete it to start anew"
        )
    if lr is None:
        lr = partial(lr_at, config=config, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
    train_step = TrainStep(
        noise=noise,
        lr=lr,
        config=config,
        num_classes=num_classes,
        hard_pool=hard_pool,
        pool_temperature=pool_temperature,
        dtype=dtype,
    )
    journal = Journal(folder / "metrics.jsonl", state.step)
    log = _Log(journal, lr, steps_per_epoch, on_log)
    execute = Executor(train_step, state, notify or (lambda line: None))
    _run(state, execute, config, batches, total_steps, stop, evaluate, log, folder / "checkpoint")
    return state.ema.module


def _start(model: nn.Module, config: TrainConfig, snapshots: Path, device: torch.device) -> TrainState:
    """Step 0, or where the latest snapshot stands."""
    model.to(device).train()
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    state = TrainState(
        model,
        Ema(model),
        build_optimizer(model, config),
        window=torch.zeros(2, device=device),
        decay=torch.zeros((), device=device),
    )
    if (snapshot := checkpoint.latest(snapshots)) is not None:
        checkpoint.load(state, snapshot)
    return state


def _run(
    state: TrainState,
    execute: Executor,
    config: TrainConfig,
    batches: Batches,
    total_steps: int,
    stop: StopFlag,
    evaluate: Evaluate | None,
    log: _Log,
    snapshots: Path,
) -> None:
    """Steps and, once in a while, a line, a look at val, a snapshot; at the end a line and a look."""
    saved = state.step
    eval_steps = config.eval_steps or math.ceil(total_steps / _LOOKS)
    for batch in _until_stopped(batches(state.step, total_steps), stop):
        execute(batch)
        log.images += len(batch.images)
        last = state.step == total_steps
        if last or state.step % config.log_steps == 0:
            log.write_training(state)
        if evaluate is not None and (last or state.step % eval_steps == 0):
            log.write({"step": state.step, **evaluate(state.ema.module)})
            log.restart_clock()
        if not last and state.step % config.checkpoint_steps == 0:
            _save(state, log, snapshots)
            saved = state.step
    if state.step < total_steps and stop.signal is not None:
        if state.step > saved:
            _save(state, log, snapshots)
        stop.check()
    if state.step != total_steps:
        raise RunError(f"training ended at step {state.step} of {total_steps}: the loader ran out of batches")


def _until_stopped(batches: Iterator[Batch], stop: StopFlag) -> Iterator[Batch]:
    """The same batches until a signal comes; one to the whole group of processes ends the loader's first."""
    try:
        for batch in batches:
            if stop.signal is not None:
                return
            yield batch
    except RunError:
        if stop.signal is None:
            raise


def _save(state: TrainState, log: _Log, snapshots: Path) -> None:
    log.settle(state)
    checkpoint.save(state, snapshots)
    log.restart_clock()


@dataclass(slots=True)
class _Log:
    """What a training says on its way."""

    journal: Journal
    lr: Callable[[int], float]
    steps_per_epoch: float
    on_log: OnLog | None
    images: int = 0
    since: float = field(default_factory=time.perf_counter)

    def write(self, line: dict[str, float]) -> None:
        self.journal.append(line)
        if self.on_log is not None:
            self.on_log(line)

    def write_training(self, state: TrainState) -> None:
        """Means over the steps since the line before; the rate, since that, a look or a snapshot."""
        loss, top1 = self._read(state)
        steps = state.step - state.logged
        self.write(
            {
                "step": state.step,
                "epoch": state.step / self.steps_per_epoch,
                "loss": loss / steps,
                "train_top1": top1 / steps,
                "lr": self.lr(state.step - 1),
                "images_per_second": self.images / (time.perf_counter() - self.since),
            }
        )
        state.window.zero_()
        state.logged = state.step
        self.restart_clock()

    def settle(self, state: TrainState) -> None:
        """Before a snapshot: its steps were sound, and all lines up to it are on the disk."""
        self._read(state)
        self.journal.sync()

    def restart_clock(self) -> None:
        self.images, self.since = 0, time.perf_counter()

    def _read(self, state: TrainState) -> tuple[float, float]:
        """The window's sums: the only host synchronisation of the loop."""
        loss, top1 = state.window.tolist()
        if not math.isfinite(loss):
            raise RunError(
                f"the loss became {loss} in the steps before step {state.step}, at a learning"
                f" rate of {self.lr(state.step - 1):.3g}; lower train.lr, raise train.warmup_epochs or set"
                " train.clip_norm"
            )
        return loss, top1
