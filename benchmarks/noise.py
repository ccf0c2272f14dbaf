"""What does input noise cost, and what does it cost elsewhere? Share of a training step, and images a second.

    python benchmarks/noise.py
    python benchmarks/noise.py --cases demo cifar10-cpu --repeats 7
    python benchmarks/noise.py --cases cifar10-cpu --num-ops 1

All noise here is a random crop of the reflected image, a flip and RandAugment with M = 9 and N = 2, or as
given, on uint8.
ours: two plans drawn (for labelled and pool rows) and applied; on a CPU to several batches at once,
on a GPU to one, by Triton's kernels, captured, while the host draws the next. torch: by PyTorch, compiled.
ceiling: forward, backward and optimiser of the case's network on one fixed batch, on a GPU compiled and
captured as well; the share is ours / ceiling.
timm: Pillow RandAugment in a DataLoader, a worker for each core. torchvision: transforms.v2, one image after
the other. kornia: on batches; it draws operations once a batch. A missing peer is left out.
Each repeat times all in turn; ratios are within a repeat: medians and ranges.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from noisystudent.augment import ops, plan
from noisystudent.augment.policies import Policy, build_policy
from noisystudent.augment.program import compile_plan
from noisystudent.config import AugmentConfig, ModelConfig, TrainConfig
from noisystudent.models.registry import build_model
from noisystudent.runtime import resolve_device
from noisystudent.self_training.noise import PLANS
from noisystudent.train.optim import build_optimizer

_CLASSES, _MAGNITUDE = 10, 9
_PEERS = ("timm", "torchvision", "kornia")
_BUDGET = 0.3  # seconds a contender is timed for in each repeat, at least
Work = Callable[[int], object]
"""One call of a contender, by number."""
Stopwatch = Callable[[], float]
"""Seconds an image, over enough calls."""


class Case(NamedTuple):
    """A network, its images, its joint batch, an eighth of it labelled, and N of RandAugment."""

    model: str
    side: int
    batch: int
    dtype: torch.dtype
    num_ops: int = 2


_CPU_CASES = {
    "demo": Case("resnet8_16", 16, 256, torch.float32),
    "cifar10-cpu": Case("resnet8_16", 32, 256, torch.bfloat16),
    "resnet50": Case("resnet50", 224, 8, torch.float32),
    "efficientnet_b0": Case("efficientnet_b0", 224, 8, torch.float32),
}
_GPU_CASES = {
    "wrn28_2": Case("wrn28_2", 32, 512, torch.bfloat16),
    "resnet50": Case("resnet50", 224, 128, torch.bfloat16),
    "efficientnet_b0": Case("efficientnet_b0", 224, 128, torch.bfloat16),
}


def stopwatch(work: Work, images: int, device: torch.device) -> Stopwatch:
    """Of work on so many images a call; warms up, so that compilation is not timed."""
    numbers = itertools.count()

    def seconds(calls: int) -> float:
        begun = time.perf_counter()
        for _ in range(calls):
            work(next(numbers))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    seconds(2)
    calls = math.ceil(_BUDGET / seconds(1))
    return lambda: seconds(calls) / (calls * images)


def recorded(work: Work) -> Work:
    """Work on a GPU as one CUDA graph."""
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        for _ in range(3):
            work(0)
    main.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work(0)
    return lambda _: graph.replay()


def ceiling(case: Case, device: torch.device) -> Work:
    """A training step without noise, average or new data."""
    config = ModelConfig(name=case.model, dropout=0.0, stochastic_depth=0.0)
    model = build_model(config, _CLASSES, case.side, pretrained=False)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, TrainConfig(optimizer="sgd", lr=0.05, batch_size=case.batch))
    images = pictures(case.side, case.batch).to(device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(case.batch, device=device) % _CLASSES
    on_gpu = device.type == "cuda"

    def loss_of(images: Tensor) -> Tensor:
        low = case.dtype != torch.float32
        with torch.autocast(device.type, case.dtype, enabled=low, cache_enabled=False):
            return nn.functional.cross_entropy(model(images), labels)

    compute = torch.compile(loss_of, dynamic=False) if on_gpu else loss_of

    def step(_: int) -> None:
        compute(images).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return recorded(step) if on_gpu else step


def together(case: Case, device: torch.device) -> int:
    """Batches whose noise is drawn at once, as in `TrainingNoise`; a CPU also applies it at once."""
    return PLANS if device.type == "cuda" else max(1, ops.BLOCK // (3 * case.side**2 * case.batch))


def ours(case: Case, policy: Policy, device: torch.device) -> dict[str, tuple[Work, int]]:
    """The parts of our noise, with their images a call: what the host draws, what is done to the pixels."""
    batches, labeled = together(case, device), case.batch // 8
    parts = (("labeled", labeled), ("pool", case.batch - labeled))

    def draw(number: int) -> plan.Plan:
        steps = itertools.product(range(number * batches, (number + 1) * batches), parts)
        drawn = (plan.draw(policy, 0, name, at, rows, resolution=case.side) for at, (name, rows) in steps)
        return plan.join(list(drawn))

    if device.type != "cuda":
        images, plans = pictures(case.side, batches * case.batch), [draw(number) for number in range(16)]
        works = {"draw": draw, "apply": lambda number: ops.apply(images, plans[number % len(plans)])}
        return {name: (work, len(images)) for name, work in works.items()}
    from noisystudent.augment import triton_ops

    images, step = (
        pictures(case.side, case.batch).to(device),
        torch.zeros((), dtype=torch.int64, device=device),
    )
    pack = partial(compile_plan, device=device, grouped=False)
    static, run = pack(draw(0)), torch.compile(ops.run, fullgraph=True)
    return {
        "host": (lambda number: static.load(pack(draw(number))), batches * case.batch),
        "apply": (recorded(lambda _: triton_ops.run(images, static.part(step, case.batch))), case.batch),
        "torch": (recorded(lambda _: run(images, static.part(step, case.batch))), case.batch),
    }


def pictures(side: int, count: int) -> Tensor:
    """(count, 3, side, side) uint8 random pixels."""
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draws)


class PillowImages(Dataset[Tensor]):
    """Random images under timm's RandAugment, and torchvision's crop and flip, on Pillow images."""

    def __init__(self, side: int, count: int, num_ops: int, translate: int) -> None:
        from timm.data.auto_augment import rand_augment_transform
        from torchvision import transforms

        self._arrays = pictures(side, count).permute(0, 2, 3, 1).contiguous().numpy()
        crop = transforms.RandomCrop(side, padding=side // 8, padding_mode="reflect")
        randaugment = rand_augment_transform(
            f"rand-m{_MAGNITUDE}-n{num_ops}-p1.0", {"translate_const": translate, "img_mean": (128,) * 3}
        )
        self._noise = transforms.Compose([crop, transforms.RandomHorizontalFlip(), randaugment])

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, row: int) -> Tensor:
        from PIL import Image

        return torch.from_numpy(np.array(self._noise(Image.fromarray(self._arrays[row])))).permute(2, 0, 1)


def timm_peer(case: Case, policy: Policy, _device: torch.device) -> Stopwatch:
    count = max(256, 2**22 // case.side**2)
    dataset = PillowImages(case.side, count, case.num_ops, policy.translate_const)
    loader = DataLoader(
        dataset, batch_size=min(64, case.batch), num_workers=os.cpu_count() or 1, persistent_workers=True
    )

    def seconds() -> float:
        begun = time.perf_counter()
        for _ in loader:
            pass
        return (time.perf_counter() - begun) / len(dataset)

    seconds()
    return seconds


def torchvision_peer(case: Case, _policy: Policy, device: torch.device) -> Stopwatch:
    from torchvision.transforms import v2

    crop = v2.RandomCrop(case.side, padding=case.side // 8, padding_mode="reflect")
    noise = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.RandAugment(case.num_ops, _MAGNITUDE)])
    images = pictures(case.side, 32).to(device)
    return stopwatch(lambda _: [noise(image) for image in images], len(images), device)


def kornia_peer(case: Case, _policy: Policy, device: torch.device) -> Stopwatch:
    import kornia.augmentation as kornia

    noise: Any = nn.Sequential(
        kornia.RandomCrop((case.side, case.side), padding=case.side // 8, padding_mode="reflect"),
        kornia.RandomHorizontalFlip(),
        kornia.auto.RandAugment(case.num_ops, _MAGNITUDE),
    )
    images = pictures(case.side, case.batch).to(device)
    return stopwatch(lambda _: noise(images.float() / 255), case.batch, device)


def contenders(case: Case, device: torch.device, peers: Collection[str]) -> dict[str, Stopwatch]:
    """Ours by part, the ceiling, and those of the peers that are installed."""
    config = AugmentConfig(crop="pad", flip=True, randaugment=f"rand-m{_MAGNITUDE}-n{case.num_ops}")
    policy = build_policy(config, case.side)
    found = {name: stopwatch(*own, device) for name, own in ours(case, policy, device).items()}
    found["ceiling"] = stopwatch(ceiling(case, device), case.batch, device)
    makers = dict(zip(_PEERS, (timm_peer, torchvision_peer, kornia_peer), strict=True))
    for name in peers:
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed: left out")
        else:
            found[name] = makers[name](case, policy, device)
    return found


def spread(values: list[float], form: str) -> str:  # median and range
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def measure(name: str, case: Case, device: torch.device, repeats: int, peers: Collection[str]) -> None:
    """Alternate all contenders and print a line each."""
    settings = f"{case.side} pixels, batch {case.batch}, {case.dtype}, N = {case.num_ops}, {repeats} repeats"
    print(f"\n{name}: {case.model}, {settings}")
    found = contenders(case, device, peers)
    times: dict[str, list[float]] = {key: [] for key in found}
    for _ in range(repeats):
        for key, watch in found.items():
            times[key].append(watch())
    for key, values in times.items():
        middle = statistics.median(values)
        print(f"  {key:12}{1e6 * middle:12,.1f} us an image{1 / middle:14,.0f} images/s")
    parts = [times[key] for key in ("draw", "apply") if key in times]
    noise = [sum(part) for part in zip(*parts, strict=True)]
    share = [100 * a / b for a, b in zip(noise, times["ceiling"], strict=True)]
    print(f"  noise / ceiling: {spread(share, '.2f')} %")
    if "host" in times:
        beside = [100 * a / b for a, b in zip(times["host"], times["ceiling"], strict=True)]
        print(f"  host / ceiling: {spread(beside, '.2f')} %")
    for peer in (name for name in peers if name in times):
        ratio = [theirs / own for own, theirs in zip(noise, times[peer], strict=True)]
        print(f"  images/s, ours / {peer}: {spread(ratio, '.2f')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cases", nargs="+", help=", ".join({**_CPU_CASES, **_GPU_CASES}))
    parser.add_argument("--num-ops", type=int, default=2, help="N of RandAugment")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", nargs="*", choices=_PEERS, default=_PEERS)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    on_gpu = device.type == "cuda"
    cases = _GPU_CASES if on_gpu else _CPU_CASES
    chosen = arguments.cases or list(cases)
    if unknown := [name for name in chosen if name not in cases]:
        parser.error(f"--cases {unknown[0]}: on this device there are {', '.join(cases)}")
    place = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    print(f"torch {torch.__version__}, {place}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    for name in chosen:
        measure(
            name, cases[name]._replace(num_ops=arguments.num_ops), device, arguments.repeats, arguments.peers
        )


if __name__ == "__main__":
    main()
