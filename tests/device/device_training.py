"""Some training steps on the pretended GPU, watched: they may not wait, and every step can be recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from pretend_gpu import Gpu
from pretend_graph import CUDAGraph
from pretend_recording import Recording
from pretend_streams import Fault
from tiny import Remembered
from torch import Tensor

from noisystudent.augment import policies
from noisystudent.config import AugmentConfig, LearnerConfig, ModelConfig, TrainConfig
from noisystudent.models.registry import build_model
from noisystudent.records import Batch
from noisystudent.self_training.noise import TrainingNoise
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.ema import Ema
from noisystudent.train.ema_teacher import Averages, EmaTeacher
from noisystudent.train.execution import Executor
from noisystudent.train.optim import build_optimizer
from noisystudent.train.step import TrainStep

CLASSES, SIDE, LABELED, POOL = 3, 16, 6, 12
STEPS = 8
CAPTURE = 3  # the step that is captured, after the warm-ups


@dataclass(frozen=True)
class Setting:
    """What is trained: differences from the standard."""

    form: str = "eager"
    device: str = "cuda:0"
    model: str = "resnet8_16"
    policy: str | None = "rand-m9-n2"
    dtype: torch.dtype = torch.float32
    rows: tuple[int, int] = (LABELED, POOL)
    hard_pool: bool = False
    temperature: float = 1.0
    dropout: float = 0.2
    frozen: int | None = None
    progress: Remembered = field(default_factory=Remembered)
    train: dict[str, Any] = field(default_factory=dict)
    teacher: EmaTeacher | None = None

    @property
    def captures(self) -> tuple[int, ...]:
        """The steps that are captured: after the warm-ups of each kind of steps."""
        first = 0 if self.teacher is None else self.teacher.first_step
        return (CAPTURE, first + CAPTURE)


def batch_of(setting: Setting, step: int) -> Batch:
    """Batch of a step, as `to` brings it from the host."""
    labeled, pool = setting.rows
    draws = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (labeled + pool, 3, SIDE, SIDE), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, CLASSES, (labeled,), generator=draws)
    targets = torch.rand((pool, CLASSES), generator=draws).softmax(1)
    return Batch(images.to(setting.device), labels.to(setting.device), targets.to(setting.device))


def begin(
    setting: Setting, wrap: Callable[[Any], Any] = lambda noise: noise
) -> tuple[TrainState, Executor, Any]:
    """A network at step 0, what runs its steps, and all its noise, which `wrap` may change."""
    train: dict[str, Any] = {"execution": setting.form, "batch_size": max(1, setting.rows[0])}
    train |= {"optimizer": "sgd", "steps": STEPS} | setting.train
    learner = LearnerConfig(
        model=ModelConfig(name=setting.model, dropout=setting.dropout, stochastic_depth=0.2),
        augment=AugmentConfig(randaugment=setting.policy),
        train=TrainConfig(**train),
    )
    model = build_model(learner.model, CLASSES, SIDE, seed=0)
    if setting.frozen is not None:
        model.freeze(setting.frozen)
    model.to(setting.device).train()
    if learner.train.channels_last:
        model.to(memory_format=torch.channels_last)
    state = TrainState(
        model,
        Ema(model),
        build_optimizer(model, learner.train),
        window=torch.zeros(2, device=setting.device),
        decay=torch.zeros((), device=setting.device),
    )
    if setting.teacher is not None and setting.teacher.adaptive:
        state.averages = Averages.start(CLASSES, torch.device(setting.device))
    policy = policies.build_policy(learner.augment, SIDE)
    views_from = None if setting.teacher is None else setting.teacher.first_step
    noise = wrap(TrainingNoise(model, learner, policy, 0, SIDE, views_from=views_from))
    step = TrainStep(
        noise=noise,
        lr=lambda number: 0.01 * (number + 1),
        config=learner.train,
        num_classes=CLASSES,
        dtype=setting.dtype,
        hard_pool=setting.hard_pool,
        pool_temperature=setting.temperature,
        teacher=setting.teacher,
    )
    return state, Executor(step, state, setting.progress, STEPS), noise


def in_thread(call: Any, arguments: Iterator[Any], workers: int, *, receive: Any = None) -> Iterator[Any]:
    """In place of decoding processes: what arrives is pinned by a thread, as there."""
    with ThreadPoolExecutor(1) as thread:
        for argument in arguments:
            result = call(argument)
            yield result if receive is None else thread.submit(receive, result).result()


def watch_steps(gpu: Gpu, patch: pytest.MonkeyPatch) -> None:
    """From now on each `TrainStep.advance` is compared with those of its kind, after the third of them."""
    advance = TrainStep.advance
    all_done: dict[object, list[Recording]] = {}

    def watched(step: TrainStep, state: TrainState, batch: Batch) -> None:
        if CUDAGraph.recording is not None:
            advance(step, state, batch)
            return
        done = all_done.setdefault(step.kind(state.step, batch), [])
        first = done[2] if len(done) > 2 else None
        gpu.recording = Recording((batch.images, batch.labels, batch.pool_targets), first)
        try:
            advance(step, state, batch)
            gpu.recording.end()
        finally:
            done.append(gpu.recording)
            gpu.recording = None

    patch.setattr(TrainStep, "advance", watched)


def trained(
    gpu: Gpu, setting: Setting, steps: int = STEPS, wrap: Callable[[Any], Any] = lambda noise: noise
) -> dict[str, Tensor]:
    """Train; return on the host the losses of all steps, and at the end weights, statistics and averages."""
    with pytest.MonkeyPatch.context() as patch:
        watch_steps(gpu, patch)
        state, execute, noise = begin(setting, wrap)
        batches, losses = [batch_of(setting, number) for number in range(steps)], []
        for number, batch in enumerate(noise.batches(iter(batches), 0)):
            # The first step makes what later ones use again, and one captures, for which PyTorch waits.
            with (
                gpu.silent()
                if number > 0 and (setting.form != "captured" or number not in setting.captures)
                else nullcontext()
            ):
                execute(batch)
            losses.append(state.window.clone())
            state.window.zero_()
    found = {f"loss of step {number}": loss for number, loss in enumerate(losses)}
    found |= {f"weights {name}": value for name, value in state.model.state_dict().items()}
    found |= {f"average {name}": value for name, value in state.ema.module.state_dict().items()}
    if state.averages is not None:
        found |= state.averages._asdict()
    return {name: value.cpu() for name, value in found.items()}


def require_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Raise unless both are equal, bit for bit; name what differs, and what a graph reads unchanged."""
    different = [name for name in first if not torch.equal(first[name], second[name])]
    if different:
        stale = [
            line for graph in CUDAGraph.made if graph.tape for line in graph.tape.unchanged(graph.replays[-2])
        ]
        raise Fault(
            f"captured and eager differ in {', '.join(different[:3])} and {len(different)} in all; the graph"
            f" reads what was not written since its last replay: {stale[:40]}"
        )
