"""How long does a training wait for a snapshot?

    python benchmarks/snapshot.py
    python benchmarks/snapshot.py --cases wrn28_2@32 resnet50@224 --repeats 5

waits: the state is copied, then the training goes on. thread: until the copy is on the disk, with checksums
and fsync. in line: the same snapshot written while the training waits, without a copy. plain: `torch.save`
of model, average and optimiser while the training waits, without checksums and fsync. ceiling: one copy of
as many bytes to the host. On a GPU the host does not wait for the copy; `device` is how long the GPU copies.
Each repeat times all in turn: medians and ranges.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path

import torch

from noisystudent.config import ModelConfig, TrainConfig
from noisystudent.console import Progress
from noisystudent.models.registry import build_model
from noisystudent.run.rundir import ModelDir
from noisystudent.runtime import resolve_device
from noisystudent.train import checkpoint
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.ema import Ema
from noisystudent.train.optim import build_optimizer
from noisystudent.train.snapshots import Snapshots


def state_of(name: str, side: int, device: torch.device) -> TrainState:
    """A training after one step."""
    model = build_model(ModelConfig(name=name), 10, side, seed=0).to(device)
    model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, TrainConfig(optimizer="sgd"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    window, decay = torch.zeros(2, device=device), torch.zeros((), device=device)
    return TrainState(model, Ema(model), optimizer, window=window, decay=decay)


def repeat(state: TrainState, snapshots: Snapshots, folder: ModelDir) -> dict[str, float]:
    """Seconds of each contender once."""
    cuda = torch.cuda if state.window.is_cuda else None
    if cuda:
        cuda.synchronize()
    begun, found = time.perf_counter(), dict[str, float]()

    def lap(name: str) -> None:
        nonlocal begun
        found[name] = time.perf_counter() - begun
        begun = time.perf_counter()

    state.step += 1
    snapshots.take()
    lap("waits")
    if cuda:
        cuda.synchronize()
        lap("device")
    snapshots.wait()
    lap("thread")
    found["thread"] += found.get("device", 0.0)
    state.step += 1
    begun = time.perf_counter()
    held = {name: tensor.cpu() for name, tensor in checkpoint.contents(state).items()}
    checkpoint.write(held, folder.checkpoints, b"")
    lap("in line")
    objects = (state.model.state_dict(), state.ema.module.state_dict(), state.optimizer.state_dict())
    torch.save(objects, folder.path / "plain.pt")
    lap("plain")
    size = sum(tensor.nbytes for tensor in held.values())
    memory = torch.empty(size, dtype=torch.uint8, device=state.window.device)
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=bool(cuda))
    begun = time.perf_counter()
    host.copy_(memory)
    lap("ceiling")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cases", nargs="+", default=["wrn28_2@32", "resnet50@224"], help="model@side")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/snapshot"))
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    print(f"torch {torch.__version__}, {device}")
    for name in arguments.cases:
        shutil.rmtree(arguments.work, ignore_errors=True)
        arguments.work.mkdir(parents=True)
        folder = ModelDir(arguments.work)
        folder.metrics.write_text("")
        model, side = name.split("@")
        state = state_of(model, int(side), device)
        with Snapshots(state, folder, None, Progress()) as snapshots:
            repeat(state, snapshots, folder)
            times = [repeat(state, snapshots, folder) for _ in range(arguments.repeats)]
            tensors = checkpoint.contents(state).values()
            size = sum(tensor.nbytes for tensor in tensors) / 2**20
        print(f"\n{name}: {len(tensors)} tensors, {size:,.0f} MiB, {arguments.repeats} repeats")
        for key in times[0]:
            found = sorted(1e3 * time[key] for time in times)
            waits = 100 * statistics.median(found) / 60e3
            spread = f"{statistics.median(found):10,.1f} ms ({found[0]:,.1f} to {found[-1]:,.1f})"
            print(f"  {key:10}{spread:34}{waits:6.2f} % of a minute")
        ratios = sorted(time["in line"] / time["waits"] for time in times)
        print(f"  in line / waits: {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})")
    shutil.rmtree(arguments.work)


if __name__ == "__main__":
    main()
