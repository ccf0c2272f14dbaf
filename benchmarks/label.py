"""Is labelling as fast as the model, or as the decoder?

    python benchmarks/label.py
    python benchmarks/label.py --parts resident --cases wrn28_2@32 resnet50@224 --seconds 10

resident: `label_images` over decoded images, against the same predictor called on one batch again and again
(ceiling). stream: the same over JPEG files decoded by workers, against the slower of the two alone: those
batches without a model (decoder), and the ceiling. On a CPU they would share the cores, so the stream has one
worker and the model one thread. peer: timm's loader over the same files, the network, softmax, to numpy.
Images are CIFAR-10's, resized to the case's side; a short set is gone through again until a run takes about
--seconds. The clock starts with the first batch, so that the start of workers does not count.
Every repeat times all in turn; ratios are taken within a repeat: median (least … greatest).
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import timm.data
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from noisystudent.config import DataConfig, LearnerConfig, ModelConfig, PseudoLabelConfig, TrainConfig
from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet
from noisystudent.data.prepare import Dataset, open_dataset, prepare
from noisystudent.data.sources import open_sources
from noisystudent.data.workers import worker_count
from noisystudent.models.classifier import Classifier
from noisystudent.models.registry import build_model
from noisystudent.pseudo_label import label_images
from noisystudent.records import Predict
from noisystudent.run.rundir import DataDir, ModelDir
from noisystudent.runtime import resolve_device, resolve_dtype
from noisystudent.self_training.training import Training, predictor

_CIFAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10" / "train.tar.xz"
_CPU_CASES = {"demo": ("resnet8_16", 16, "fp32"), "cifar10-cpu": ("resnet8_16", 32, "bf16")}
_GPU_CASES = ("wrn28_2@32", "resnet50@224", "efficientnet_b0@224")
_LIMITS = {"resident": 0.95, "stream": 0.90}
Rows = NDArray[np.int64]
Contender = Callable[[int], float]
"""Goes through so many images; how many seconds it took once the first batch had come."""
Times = dict[str, list[float]]
"""Images a second of each contender, a figure a repeat."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=_LIMITS, default=["resident", "stream"])
    parser.add_argument("--cases", nargs="+", help="demo, cifar10-cpu or MODEL@SIDE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=10_000, help="different images; fewer above 64 pixels")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--workers", type=int, help="of the stream; default: one a core, on a CPU one")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one timing")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--archive", type=Path, default=_CIFAR, help="of images train/<class>/<image>")
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/label"))
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    names = arguments.cases or (_GPU_CASES if device.type == "cuda" else _CPU_CASES)
    print(f"{device}, {torch.get_num_threads()} threads, batches of {arguments.batch}")
    for part in arguments.parts:
        for name in names:
            labeling(part, name, device, arguments)


# --- a model and images ---


@dataclass(frozen=True)
class Case:
    """A network, its images, and everything `label_images` is handed in a run."""

    training: Training
    model: Classifier
    images: ImageSet
    folder: Path
    work: Path
    batch: int

    def views(self, requests: Iterator[Rows]) -> Iterator[Tensor]:
        wrapped = (rows % len(self.images) for rows in requests)
        return predictor(self.training, self.model).requested_views(self.images, wrapped)

    def requests(self, images: int) -> Iterator[Rows]:
        return (np.arange(at, at + self.batch) for at in range(0, images, self.batch))

    def prepared(self, images: int, most: int | None = None) -> tuple[Predict, int]:
        teacher = replace(predictor(self.training, self.model), batch_size=self.batch)
        return teacher.prepared(images, most, progress=Progress())

    def sync(self) -> None:
        if self.training.device.type == "cuda":
            torch.cuda.synchronize()


def case(part: str, name: str, device: torch.device, arguments: argparse.Namespace) -> Case:
    precision: Any
    model, side, precision = _CPU_CASES.get(name) or (*name.split("@"), "auto")
    side = int(side)
    count = arguments.images if side <= 64 else arguments.images // 10
    folder = files(arguments.archive, arguments.work, count)
    dataset = prepared(part, folder, side, arguments).to_device(device)
    on_cpu = 1 if device.type == "cpu" else worker_count(None)
    config = LearnerConfig(
        model=ModelConfig(name=model), train=TrainConfig(steps=1, batch_size=8, precision=precision)
    )
    training = Training(
        learner=config,
        dataset=dataset,
        folder=ModelDir(arguments.work),
        seed=0,
        resolution=side,
        device=device,
        workers=0 if part == "resident" else arguments.workers or on_cpu,
    )
    built = build_model(config.model, len(dataset.classes), side, seed=0).to(device)
    built = built.to(memory_format=torch.channels_last).eval()  # as in a run
    return Case(training, built, dataset.labeled, folder, arguments.work, arguments.batch)


def files(images: Path, work: Path, count: int) -> Path:
    """About `count` images of an archive, all classes alike, as `<class>/<file>.jpg`, made once."""
    root = work / f"jpeg-{count}"
    if not root.exists():
        if not images.exists():
            raise SystemExit(f"needs {images}")
        partial = root.with_suffix(".partial")
        with tarfile.open(images) as archive:
            members = [member for member in archive if member.isfile()]
            archive.extractall(partial, members[:: max(1, len(members) // count)], filter="data")
        (partial / "train").rename(root)
    return root


def prepared(part: str, folder: Path, side: int, arguments: argparse.Namespace) -> Dataset:
    plane = "resident" if part == "resident" else "streamed"
    config = DataConfig(labeled=(str(folder),), plane=plane, resolution=side, val_fraction=0.01)  # type: ignore[arg-type]
    out = arguments.work / f"{folder.name}-{plane}-{side}"
    prepare(config, open_sources(config), DataDir(out), 0, Progress())
    return open_dataset(DataDir(out), config, open_sources(config))


# --- labelling ---


def labeling(part: str, name: str, device: torch.device, arguments: argparse.Namespace) -> None:
    threads = torch.get_num_threads()
    if part == "stream" and device.type == "cpu":
        torch.set_num_threads(1)
    found = case(part, name, device, arguments)
    batch = next(found.views(found.requests(found.batch)))
    contenders: dict[str, Contender] = {
        "ours": lambda n: ours(found, n),
        "ceiling": lambda n: ceiling(found, batch, n),
    }
    if part == "stream":
        contenders |= {"decoder": lambda n: decoder(found, n), "peer": lambda n: peer(found, n)}
    counts = {each: enough(run, arguments) for each, run in contenders.items()}
    times = alternate(contenders, counts, arguments.repeats)
    if part == "stream":
        times["slower"] = [min(pair) for pair in zip(times["ceiling"], times["decoder"], strict=True)]
    limit = "ceiling" if part == "resident" else "slower"
    settings = f"{found.training.workers} workers, {torch.get_num_threads()} threads"
    print(f"\n{part} {name}: {found.training.learner.model.name}, {found.training.resolution} px, {settings}")
    show(times, limit)
    reached = statistics.median(ratios(times, "ours", limit))
    print(f"{'':10}at least {_LIMITS[part]} x {limit}: {'yes' if reached >= _LIMITS[part] else 'NO'}")
    torch.set_num_threads(threads)


class Clock:
    """Starts when the first of some batches has come."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def watch(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        first = next(batches)
        self._started = time.perf_counter()
        yield first
        yield from batches

    def seconds(self, found: Case) -> float:
        found.sync()
        return time.perf_counter() - self._started


def ours(found: Case, images: int) -> float:
    shutil.rmtree(out := found.work / "labels", ignore_errors=True)
    hashes, clock = found.images.content_hash, Clock()
    label_images(
        found.prepared,
        lambda requests: clock.watch(found.views(requests)),
        lambda rows: found.images.ids(rows % len(found.images)),
        np.resize(hashes, (images, hashes.shape[1])),
        num_classes=found.model.num_classes,
        config=PseudoLabelConfig(batch_size=found.batch),
        out=out,
        task="labels",
        progress=Progress(),
    )
    return clock.seconds(found)


def ceiling(found: Case, batch: Tensor, images: int) -> float:
    predict, size = found.prepared(images)
    batch = batch.repeat(-(-size // len(batch)), 1, 1, 1)[:size]
    clock = Clock()
    for _ in range(images // size):
        predict(batch)
    return clock.seconds(found) * images / (images // size * size)


def decoder(found: Case, images: int) -> float:
    clock = Clock()
    for _ in clock.watch(found.views(found.requests(images))):
        pass
    return clock.seconds(found)


def peer(found: Case, images: int) -> float:
    """What timm's inference script does, on the same network under the same precision."""
    side, device = found.training.resolution, found.training.device
    loader = timm.data.create_loader(
        timm.data.ImageDataset(str(found.folder)),
        input_size=(3, side, side),
        batch_size=found.batch,
        use_prefetcher=device.type == "cuda",
        num_workers=found.training.workers,
        crop_pct=1.0,
        device=device,
        persistent_workers=found.training.workers > 0,
    )
    dtype = resolve_dtype(found.training.learner.train.precision, device)
    net: nn.Module = found.model.net
    clock, probs = Clock(), []
    endless = (views for _ in itertools.count() for views, _ in loader)
    done = 0
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for views in clock.watch(endless):
            probs.append(net(views.to(device)).float().softmax(dim=1).cpu().numpy())
            done += len(views)
            if done >= images:
                break
    np.concatenate(probs)
    return clock.seconds(found)


# --- timing ---


def enough(run: Contender, arguments: argparse.Namespace) -> int:
    """So many images that a run takes about --seconds, in whole batches; also warms up."""
    count = 4 * arguments.batch
    while (spent := run(count)) < arguments.seconds / 4:
        count *= 2
    batches = max(1, round(count * arguments.seconds / spent / arguments.batch))
    return int(batches * arguments.batch)


def alternate(contenders: dict[str, Contender], counts: dict[str, int], repeats: int) -> Times:
    times: Times = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            times[name].append(counts[name] / run(counts[name]))
    return times


def ratios(times: Times, over: str, under: str) -> list[float]:
    return [a / b for a, b in zip(times[over], times[under], strict=True)]


def show(times: Times, limit: str) -> None:
    print(f"{'':10}{'images/s':>30}{'ours / it':>24}")
    for name, rates in times.items():
        mark = " *" if name == limit else ""
        print(f"{name + mark:10}{spread(rates, ',.0f'):>30}{spread(ratios(times, 'ours', name), '.3f'):>24}")


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} … {max(values):{form}})"


if __name__ == "__main__":
    main()
