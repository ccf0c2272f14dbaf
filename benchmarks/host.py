"""How many milliseconds of a step does the host need, so that a GPU gets its work?

    python benchmarks/host.py
    python benchmarks/host.py --cases wrn28_2@32 --classes 1000

rows: which images come, of the labelled ones and of a pool of a million. plan: the input noise drawn and
packed as a GPU reads it. masks: those of dropout and stochastic depth, drawn on --device; on a GPU this is
the time of the launches. targets: pseudo-labels of the pool rows, at most 32 probabilities each. Batches are
those of benchmarks/step.py on a GPU. Medians and ranges over the steps, in one process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from noisystudent.augment import plan
from noisystudent.augment.policies import build_policy
from noisystudent.augment.program import compile_plan
from noisystudent.config import AugmentConfig, ModelConfig
from noisystudent.data.sampler import Repeated, Sampler
from noisystudent.models.registry import build_model
from noisystudent.pseudo_label.targets import Targets
from noisystudent.runtime import resolve_device

_POOL, _TOP = 1_000_000, 32
_CPU = torch.device("cpu")


def works(
    case: str, batch: int, classes: int, device: torch.device, folder: Path
) -> dict[str, Callable[[int], object]]:
    """The parts of the host's work, by step."""
    model, side = case.split("@")
    labeled, pool = batch // 8, batch - batch // 8
    policy = build_policy(AugmentConfig(randaugment="rand-m9-n2"), int(side))
    network = build_model(ModelConfig(name=model, dropout=0.2, stochastic_depth=0.2), 10, int(side), seed=0)
    active = torch.ones(batch, dtype=torch.bool, device=device)
    kept = Repeated(np.ones(_POOL, np.int32))
    samplers = Sampler(50_000, labeled, 0, "labeled"), Sampler(len(kept), pool, 0, "pool")
    targets, rng = stored(folder, classes), np.random.default_rng(0)
    positions = rng.integers(0, len(targets), (64, pool))

    def rows(step: int) -> None:
        samplers[0].at(step)
        kept[samplers[1].at(step)]

    def noise(step: int) -> None:
        parts = (("labeled", labeled), ("pool", pool))
        drawn = [plan.draw(policy, 0, name, step, count, resolution=int(side)) for name, count in parts]
        compile_plan(plan.join(drawn), _CPU, grouped=False)

    return {
        "rows": rows,
        "plan": noise,
        "masks": lambda step: network.noise.draw(0, step, active, split=labeled),
        "targets": lambda step: targets(positions[step % 64]),
    }


def stored(folder: Path, classes: int) -> Targets:
    """Targets of 10,000 images as `read_targets` stores them."""
    rng, count, top = np.random.default_rng(0), 10_000, min(_TOP, classes)
    probs = rng.random((count, top), np.float32).astype(np.float16)
    if classes > 256:
        index = np.min_scalar_type(classes - 1)
        record = np.dtype([("classes", index, (top,)), ("probs", np.float16, (top,)), ("tail", np.float32)])
        values = np.zeros(count, record)
        values["classes"] = [rng.permutation(classes)[:top] for _ in range(count)]
        values["probs"], values["tail"] = probs / top, 0.1
    else:
        values = rng.random((count, classes), np.float32).astype(np.float16)
    path = folder / f"{classes}.npy"
    np.save(path, values)
    return Targets(path, classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["resnet8_16@32", "wrn28_2@32", "resnet50@224"])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    for case in arguments.cases:
        batch = 512 if int(case.split("@")[1]) <= 64 else 128
        for classes in arguments.classes:
            print(f"\n{case}, batch {batch}, {classes} classes, {arguments.steps} steps")
            with tempfile.TemporaryDirectory() as folder:
                show(works(case, batch, classes, device, Path(folder)), arguments.steps)


def show(parts: dict[str, Callable[[int], object]], steps: int) -> None:
    """Time all parts in turn, and print a line each."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for step in range(steps + 5):
        for name, work in parts.items():
            begun = time.perf_counter()
            work(step)
            times[name].append(1e3 * (time.perf_counter() - begun))
    times = {name: found[5:] for name, found in times.items()}  # the first steps allocate
    times["sum"] = [sum(step) for step in zip(*times.values(), strict=True)]
    for name, found in times.items():
        print(f"  {name:10}{statistics.median(found):8.3f} ms ({min(found):.3f} to {max(found):.3f})")


if __name__ == "__main__":
    main()
