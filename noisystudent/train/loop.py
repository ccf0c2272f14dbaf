"""The training loop `fit`: steps, log, evaluations on val, snapshots and exact resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from noisystudent.config import TrainConfig
from noisystudent.console import Progress
from noisystudent.distributed import group
from noisystudent.errors import RunError, Stopped
from noisystudent.records import Batch
from noisystudent.run.rundir import ModelDir
from noisystudent.train import checkpoint
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.ema import Ema, averaged_copy
from noisystudent.train.ema_teacher import Averages
from noisystudent.train.execution import Executor
from noisystudent.train.journal import Journal
from noisystudent.train.log import Evaluate, Log, OnLog, Show
from noisystudent.train.optim import build_optimizer, frozen_digest
from noisystudent.train.parallel import assemble, on_host, shard, synchronize_batchnorm
from noisystudent.train.snapshots import Snapshots
from noisystudent.train.step import TrainStep

Batches = Callable[[int, int], Iterator[Batch]]
"""(start, stop) -> the batches of steps start … stop-1."""

_EVALUATIONS = 10  # number of evaluations on val in a training if `eval_steps` is not set


def fit(
    model: nn.Module,
    batches: Batches,
    step: TrainStep,
    *,
    total_steps: int,
    steps_per_epoch: float,
    folder: ModelDir,
    progress: Progress,
    kinds: int = 1,
    evaluate: Evaluate | None = None,
    on_log: OnLog | None = None,
    show: Show | None = None,
) -> nn.Module:
    """Train `model`, starting from the newest intact snapshot in `folder` if there is one.

    A training that was interrupted and resumed ends with the weights of an uninterrupted one, bit for bit on
    a CPU and with the deterministic kernels of a GPU. Its metrics.jsonl is the same, except for
    `images_per_second`.

    Args:
        model: model with float32 parameters on their device and noise off; trained in place.
        batches: (start, stop) -> the batches of steps start … stop-1; each is a pure function of its step.
        step: definition of a step; `epochs` and `steps` of its configuration are not read.
        total_steps: number of optimiser steps.
        steps_per_epoch: labelled images / labelled images per step.
        folder: folder for snapshots and metrics.jsonl.
        progress: prints how steps are executed; a signal stops the training between two steps.
        kinds: number of kinds of steps, see `TrainStep.kind`.
        evaluate: averaged model -> scores for the log, every `eval_steps` steps and at the end. None: never.
        on_log: called with each line of metrics.jsonl.
        show: called at most once a second, and with each line that has a loss.

    Returns:
        The averaged model in evaluation mode.

    Raises:
        RunError: the training diverged, `evaluate` failed, the disk is full, or the snapshot is of another.
        Stopped: a signal came; a snapshot of the last step is on disk.
    """
    config = step.config
    state, earlier = _start(model, step, folder, progress)
    if state.step > total_steps:
        raise RunError(
            f"the checkpoint in {folder.path} is at step {state.step} of {total_steps}; delete it to"
            " start again"
        )
    everyone = step.everyone
    journal = Journal(folder.metrics, earlier) if everyone.is_main else None
    log = Log(journal, step.lr, steps_per_epoch, on_log, show)
    # With deterministic kernels a resumed training must also take the form of an uninterrupted one.
    steps = total_steps - (0 if torch.are_deterministic_algorithms_enabled() else state.step)
    execute = Executor(step, state, progress, steps // kinds)
    eval_steps = steps_between_evaluations(config, total_steps)
    with Snapshots(state, folder, config.checkpoint_steps, progress) as snapshots:
        stream = _until_signal(batches(state.step, total_steps), progress)
        while state.step < total_steps:
            batch = next(stream, None)
            # All processes end before the same step, and take a snapshot after the same one.
            ended, due = everyone.any(batch is None, everyone.is_main and snapshots.due())
            if ended or batch is None:
                break
            execute(batch)
            log.count(state, batch)
            last = state.step == total_steps  # `execute` has incremented the step
            if last or state.step % config.log_steps == 0:
                log.write_training(state)
            if evaluate is not None and (last or state.step % eval_steps == 0):
                log.write_evaluation(state, evaluate)
            # No snapshot after the last step: the caller saves the weights.
            if due and not last:
                _take(snapshots, state, log)
        (stopped,) = everyone.any(progress.signal is not None)
        if state.step < total_steps and stopped:
            if state.step > snapshots.step:  # otherwise no step would be lost
                _take(snapshots, state, log)
            _stop(snapshots, progress)
    if state.step != total_steps:
        raise RunError(f"training ended at step {state.step} of {total_steps}: the loader ran out of batches")
    return state.ema.module if state.whole is None else assemble(state.whole, state.ema.module)


def steps_between_evaluations(config: TrainConfig, total_steps: int) -> int:
    """Number of steps between two evaluations on val; one more follows the last step."""
    return config.eval_steps or math.ceil(total_steps / _EVALUATIONS)


def initial_state(model: nn.Module, step: TrainStep) -> TrainState:
    """State of a training at step 0. All processes of a run call this."""
    model.train()
    everyone = step.everyone
    sharded = everyone.size > 1 and step.config.parallel == "fsdp"
    # Before `Ema` copies the model, so that both have the same memory format. FSDP2 takes only one format.
    if step.config.channels_last and not sharded:
        model.to(memory_format=torch.channels_last)
    device = next(model.parameters()).device
    if everyone.size > 1:  # processors of different kinds may draw weights with other last digits
        everyone.copy(*model.parameters(), *model.buffers())
        if step.config.sync_batchnorm:
            synchronize_batchnorm(model)
    frozen, average, whole = frozen_digest(model), averaged_copy(model), None
    if sharded:
        whole = on_host(average)
        shard(model)
        shard(average)
    state = TrainState(
        model,
        Ema(model, average),
        build_optimizer(model, step.config),
        window=torch.zeros(2, device=device),
        decay=torch.zeros((), device=device),
        frozen=frozen,
        whole=whole,
    )
    if step.teacher is not None and step.teacher.adaptive:
        state.averages = Averages.start(step.num_classes, device)
    return state


def _start(
    model: nn.Module, step: TrainStep, folder: ModelDir, progress: Progress
) -> tuple[TrainState, Path | None]:
    """State and path of the measurements of the newest intact snapshot; step 0 and None if there is none."""
    state = initial_state(model, step)
    snapshot = step.everyone.lead(partial(checkpoint.newest, folder.checkpoints, progress))
    if snapshot is None:
        return state, None
    checkpoint.load(state, snapshot)
    return state, checkpoint.journal(snapshot)


def _until_signal(batches: Iterator[Batch], progress: Progress) -> Iterator[Batch]:
    """Yield the batches until a signal comes.

    The loader may notice the signal first, or fail because of it. Its error is ignored then.
    """
    try:
        for batch in batches:
            if progress.signal is not None:
                return
            yield batch
    except (RunError, Stopped):
        if progress.signal is None:
            raise


def _take(snapshots: Snapshots, state: TrainState, log: Log) -> None:
    """Take a snapshot; the time it takes does not count in `images_per_second`."""
    log.check(state)
    snapshots.take()
    log.restart_clock()


def _stop(snapshots: Snapshots, progress: Progress) -> None:
    """Stop all processes when the last snapshot is on disk, whichever of them has received the signal."""
    snapshots.wait()
    group().any()  # what started the processes ends all when the first has ended
    progress.stop.set()
    progress.check()
