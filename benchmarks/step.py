"""Is a training step as fast as the hardware? Ours against the unavoidable work, and against plain loops.

    python benchmarks/step.py
    python benchmarks/step.py --cases wrn28_2@32 resnet50@224 --forms eager compiled captured

ours: `train.execution.Executor`: input noise drawn and applied, model noise, joint loss, optimiser and moving
average, in each form. ceiling: forward, backward and optimiser of the same network on one fixed batch
without any noise, in the same form. plain: the loop one would write: the same noise, an eager step, timm's
EMA and `loss.item()` for the log. timm: the body of timm's training loop, on images already noised.
Images are resident; a CPU runs bf16 where the recipe does. Each repeat times all in turn; ratios are within a
repeat, medians and ranges over the repeats.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from noisystudent.augment import policies
from noisystudent.config import AugmentConfig, LearnerConfig, ModelConfig, TrainConfig
from noisystudent.models.classifier import Classifier
from noisystudent.models.registry import build_model
from noisystudent.records import Batch
from noisystudent.runtime import resolve_device
from noisystudent.self_training.noise import TrainingNoise
from noisystudent.terminal import Terminal
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.ema import Ema
from noisystudent.train.execution import Executor
from noisystudent.train.optim import build_optimizer
from noisystudent.train.step import TrainStep

_CLASSES = 10
_GPU_CASES = ("wrn28_2@32", "resnet50@224", "efficientnet_b0@224")
_CPU_CASES = ("demo", "cifar10-cpu", "efficientnet_b0@224")


class Case(NamedTuple):
    """A network at a size, as a recipe trains it."""

    model: str
    side: int
    labeled: int
    pool: int
    dtype: torch.dtype
    noise: str = "rand-m9-n2"
    dropout: float = 0.0
    depth: float = 0.0


@dataclass(frozen=True)
class Bench:
    """What one case is timed on."""

    case: Case
    learner: LearnerConfig
    device: torch.device
    batches: list[Batch]


def cases(names: list[str], device: torch.device) -> dict[str, Case]:
    """By name; `model@side` takes a large batch on a GPU, a small one on a CPU."""
    known = {
        "demo": Case("resnet8_16", 16, 32, 224, torch.float32, dropout=0.2, depth=0.1),
        "cifar10-cpu": Case("resnet8_16", 32, 128, 128, torch.bfloat16),
    }
    on_gpu = device.type == "cuda"
    for name in names:
        if name not in known:
            model, side = name.split("@")
            batch = (512 if int(side) <= 64 else 128) if on_gpu else 16
            dtype = torch.bfloat16 if on_gpu else torch.float32
            known[name] = Case(
                model, int(side), batch // 8, batch - batch // 8, dtype, dropout=0.2, depth=0.2
            )
    return {name: known[name] for name in names}


def bench_of(case: Case, device: torch.device) -> Bench:
    """Four batches of random pixels on the device."""
    learner = LearnerConfig(
        model=ModelConfig(name=case.model, dropout=case.dropout, stochastic_depth=case.depth),
        augment=AugmentConfig(randaugment=case.noise),
        train=TrainConfig(steps=1000, batch_size=case.labeled, lr=0.05),
    )
    draws = torch.Generator().manual_seed(0)
    rows, shape = case.labeled + case.pool, (3, case.side, case.side)
    batches = [
        Batch(
            torch.randint(0, 256, (rows, *shape), dtype=torch.uint8, generator=draws).to(device),
            torch.randint(0, _CLASSES, (case.labeled,), generator=draws).to(device),
            torch.rand((case.pool, _CLASSES), generator=draws).softmax(1).to(device),
        )
        for _ in range(4)
    ]
    return Bench(case, learner, device, batches)


def network(bench: Bench) -> Classifier:
    model = build_model(bench.learner.model, _CLASSES, bench.case.side, seed=0)
    return model.to(bench.device).to(memory_format=torch.channels_last).train()


def ours(bench: Bench, form: Any) -> Callable[[int], None]:
    """One of our steps, by step number."""
    model, learner = network(bench), bench.learner
    policy = policies.build_policy(learner.augment, bench.case.side)
    config = replace(learner.train, execution=form)
    state = TrainState(
        model,
        Ema(model),
        build_optimizer(model, config),
        window=torch.zeros(2, device=bench.device),
        decay=torch.zeros((), device=bench.device),
    )
    noise = TrainingNoise(model, learner, policy, 0, bench.case.side)
    batches = noise.batches(itertools.cycle(bench.batches), 0)
    step = TrainStep(
        noise=noise,
        lr=lambda step: 0.01,
        config=config,
        num_classes=_CLASSES,
        dtype=bench.case.dtype,
    )
    execute = Executor(step, state, Terminal(), steps=1000)
    return lambda _: execute(next(batches))


def ceiling(bench: Bench, form: str) -> Callable[[int], None]:
    """Forward, backward and optimiser on one batch that never changes: no noise, no average, no copies."""
    model = network(bench)
    optimizer = build_optimizer(model, bench.learner.train)
    batch = bench.batches[0]
    images = batch.images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, _CLASSES, (len(images),), device=bench.device)

    def loss_of(images: Tensor) -> Tensor:
        with torch.autocast(bench.device.type, bench.case.dtype, enabled=bench.case.dtype != torch.float32):
            return nn.functional.cross_entropy(model(images).float(), labels)

    compiled = form in ("compiled", "captured")
    compute = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def step(_: int = 0) -> None:
        compute(images).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _captured(step) if form.startswith("captured") else step


def _captured(step: Callable[[], None]) -> Callable[[int], None]:
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    main.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        step()
    return lambda _: graph.replay()


def plain(bench: Bench) -> Callable[[int], None]:
    """The loop one would write with the same noise."""
    model = network(bench)
    optimizer, ema = build_optimizer(model, bench.learner.train), ModelEmaV3(model, decay=0.999)
    policy = policies.build_policy(bench.learner.augment, bench.case.side)
    noise = TrainingNoise(model, bench.learner, policy, 0, bench.case.side)

    def step(number: int) -> None:
        batch = next(noise.batches(iter([bench.batches[number % len(bench.batches)]]), number))
        noise.draw(batch, number)
        images = noise.apply(batch.images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(bench.device.type, bench.case.dtype, enabled=bench.case.dtype != torch.float32):
            logits = model(images)
        rows = len(batch.labels)
        given = nn.functional.cross_entropy(logits[:rows], batch.labels, label_smoothing=0.1)
        loss = given + nn.functional.cross_entropy(logits[rows:], batch.pool_targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)
        loss.item()

    return step


def timm_loop(bench: Bench) -> Callable[[int], None]:
    """What timm's train_one_epoch does with a batch from its loader: float images, loss, step, EMA."""
    model = network(bench)
    optimizer, ema = build_optimizer(model, bench.learner.train), ModelEmaV3(model.net, decay=0.999)
    mean, std = model.mean * 255, model.std * 255
    labels = torch.randint(0, _CLASSES, (len(bench.batches[0].images),), device=bench.device)

    def step(number: int) -> None:
        images = bench.batches[number % len(bench.batches)].images
        floats = images.float().sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(bench.device.type, bench.case.dtype, enabled=bench.case.dtype != torch.float32):
            loss = nn.functional.cross_entropy(model.net(floats), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model.net, step=number)

    return step


def seconds(step: Callable[[int], None], count: int, device: torch.device) -> float:
    """Of one step, over `count`."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for number in range(count):
        step(number)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / count


def measure(name: str, bench: Bench, forms: list[str], repeats: int, budget: float) -> None:
    """Alternate all rivals `repeats` times and print a line each."""
    runs: dict[str, Callable[[int], None]] = {}
    for form in forms:
        runs[f"ours, {form}"] = ours(bench, form)
        runs[f"ceiling, {form}"] = ceiling(bench, form)
    runs |= {"plain": plain(bench), "timm": timm_loop(bench)}
    for run in runs.values():
        for number in range(5):
            run(number)
    slowest = max(seconds(run, 2, bench.device) for run in runs.values())
    count = max(2, round(budget / (repeats * len(runs) * slowest)))
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            times[key].append(seconds(run, count, bench.device))
    rows = len(bench.batches[0].images)
    case = bench.case
    print(
        f"\n{name}: {case.model}, {case.side} pixels, batch {rows}, {case.dtype}, {repeats} x {count} steps"
    )
    for key, found in times.items():
        print(f"  {key:20}{rows / statistics.median(found):10,.0f} images/s")
    for form in forms:
        mine = times[f"ours, {form}"]
        for rival in (f"ceiling, {form}", "plain", "timm"):
            ratios = sorted(theirs / own for own, theirs in zip(mine, times[rival], strict=True))
            spread = f"({ratios[0]:.3f} to {ratios[-1]:.3f})"
            print(f"  ours, {form} / {rival:18}{statistics.median(ratios):6.3f}  {spread}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cases", nargs="+", help="demo, cifar10-cpu, or model@side")
    parser.add_argument("--forms", nargs="+", choices=["eager", "compiled", "captured", "captured-eager"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--budget", type=float, default=40, help="seconds of timing a case")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    on_gpu = device.type == "cuda"
    forms = arguments.forms or (["eager", "captured"] if on_gpu else ["eager"])
    place = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {place}")
    chosen = cases(arguments.cases or list(_GPU_CASES if on_gpu else _CPU_CASES), device)
    for name, case in chosen.items():
        measure(name, bench_of(case, device), forms, arguments.repeats, arguments.budget)


if __name__ == "__main__":
    main()
