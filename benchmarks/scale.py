"""What the paper's largest run would take: bytes, requests, hours and cost on 8, 64 and 512 GPUs.

    python benchmarks/scale.py
    python benchmarks/scale.py --rate 30e12 --gpus 8 64 512

Nothing is trained. The work follows from the recipe imagenet-l2 and its networks: the images of each training
times the multiply-adds of the network, three times for forward and backward. RATES says where each rate was
measured. --rate is what one GPU does: multiply-adds a second in whole training steps. Its default is that of
a TPU v3 core in the paper's training of L2, which took 6 days on 2,048 of them. Hours are multiply-adds over
rate and number of GPUs: N GPUs are taken to be N times as fast as one. The prices are examples without a
source; storage, traffic and other machines are not in the cost.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from noisystudent.config import LearnerConfig
from noisystudent.data.phash import VARIANTS
from noisystudent.models.scaling import PUBLISHED, multiply_adds, parameters
from noisystudent.recipes import load

_LABELED, _POOL, _CLASSES = 1_281_167, 300_000_000, 1000
_HELD_OUT = 50_000  # val of ImageNet; near copies of its variants are searched in the pool
_DAYS, _CORES, _BACKWARD = 6, 2048, 3  # a step costs three forward passes
_HOUR = 3600

# name -> (value, where it was measured): two cores of an AMD EPYC, benchmarks/results/
RATES: dict[str, tuple[float, str]] = {
    "decoded images/s a core": (475, "loader.py: JPEG of 110 kB, 224 pixels, with cropping"),
    "bytes of an image": (50_000, "remote.py: the mean of its images"),
    "requests an image, in order": (0.017, "remote.py, cold"),
    "requests an image, shuffled": (0.769, "remote.py, cold"),
    "bytes an image, shuffled": (132_200, "remote.py, cold"),
    "search for near copies, CPU s a pair": (0.6e-9, "leaks.py: a pool image with a variant"),
    "search within the pool, CPU s an image": (2.1e-6, "leaks.py: scenes of 100 near frames, 10 million"),
    "search within the pool, bytes an image": (81, "leaks.py: 41, the hash 32, the row 8"),
    "listing, CPU s an image": (0.107e-3, "remote.py"),
    "pseudo-labels written a second": (221_047, "writing.py, 1,000 classes"),
    "bytes of a pseudo-label": (139, "writing.py, 1,000 classes"),
    "selection, CPU s a million rows": (0.34, "selection.py, a billion rows, two threads"),
    "selection, s a million rows": (0.503, "selection.py, a billion rows, two threads on busy cores"),
    "memory, bytes an image": (78, "memory.py, 10,000 to a million images"),
    "memory of the scan, bytes an image": (19.5, "memory.py, 10,000 to a million images"),
}


@dataclass(frozen=True)
class Work:
    """What a stage does.

    Attributes:
        images: images that are seen, each as often as it is seen.
        operations: multiply-adds.
        shuffled: True if the images come in random order.
        parts: the stages that it sums up.
    """

    name: str
    images: float
    operations: float
    shuffled: bool
    parts: tuple[Work, ...] = ()

    @property
    def read(self) -> float:
        """Bytes that are read from the store, without a cache."""
        name = "bytes an image, shuffled" if self.shuffled else "bytes of an image"
        return sum(part.read for part in self.parts) if self.parts else self.images * value(name)

    @property
    def requests(self) -> float:
        name = f"requests an image, {'shuffled' if self.shuffled else 'in order'}"
        return sum(part.requests for part in self.parts) if self.parts else self.images * value(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, help="multiply-adds a second of one GPU")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--gpu-hour", type=float, default=2.5, help="price in dollars")
    parser.add_argument("--million-requests", type=float, default=0.4, help="price in dollars")
    arguments = parser.parse_args()
    stages = work()
    core = next(s for s in stages if s.name == "student 1").operations / (_DAYS * 24 * _HOUR * _CORES)
    rate = arguments.rate or core
    print(f"a TPU v3 core in the paper: {core / 1e12:.2f}e12 multiply-adds/s; here {rate / 1e12:.2f}e12\n")
    columns = "".join(f"{f'{gpus} GPUs, h':>14}" for gpus in arguments.gpus)
    print(f"{'stage':22}{'images':>9}{'multiply-adds':>15}{columns}{'TB read':>10}{'M requests':>12}")
    for stage in [*stages, total(stages)]:
        hours = "".join(f"{stage.operations / rate / gpus / _HOUR:14,.1f}" for gpus in arguments.gpus)
        amounts = f"{stage.read / 1e12:10,.0f}{stage.requests / 1e6:12,.0f}"
        print(f"{stage.name:22}{stage.images:9.2g}{stage.operations:15.2g}{hours}{amounts}")
    gpu_hours, requests = total(stages).operations / rate / _HOUR, total(stages).requests / 1e6
    cost = gpu_hours * arguments.gpu_hour
    print(f"{gpu_hours:,.0f} GPU hours at {arguments.gpu_hour:.2f} dollars (an example): {cost:,.0f} dollars")
    cost = requests * arguments.million_requests
    print(f"requests at {arguments.million_requests:.2f} dollars a million (an example): {cost:,.0f} dollars")
    show_limits()
    show_needs(stages, rate)


def work() -> list[Work]:
    """The stages of the recipe, in order, each with the images and the operations that it needs."""
    config = load("imagenet-l2")
    if config.filter is None:
        raise ValueError("imagenet-l2 has no filter")
    stages = [training("filter", config.filter), training("teacher", config.teacher)]
    stages += [labelling("labels of the filter", config.filter)]
    stages += [labelling("labels 1", config.teacher)]
    for number, student in enumerate(config.students, 1):
        stages.append(training(f"student {number}", student, student.unlabeled_ratio[-1]))
        tuned = student.finetune
        if tuned is not None and tuned.epochs is not None:
            images = tuned.epochs * _LABELED
            operations = _BACKWARD * images * forward(student, tuned.resolution)
            stages.append(Work(f"student {number}, 800 px", images, operations, shuffled=True))
        if number < len(config.students):
            stages.append(labelling(f"labels {number + 1}", student))
    return stages


def training(name: str, learner: LearnerConfig, ratio: float = 0) -> Work:
    if learner.train.epochs is None:
        raise ValueError(f"{name} has no epochs")
    images = learner.train.epochs * _LABELED * (1 + ratio)
    return Work(name, images, _BACKWARD * images * forward(learner), shuffled=True)


def labelling(name: str, learner: LearnerConfig) -> Work:
    return Work(name, _POOL, _POOL * forward(learner), shuffled=False)


def forward(learner: LearnerConfig, side: int | None = None) -> int:
    """Multiply-adds of a forward pass of one image."""
    network = PUBLISHED[learner.model.name.removeprefix("tf_efficientnet_")]
    return multiply_adds(replace(network, resolution=side or learner.model.resolution or network.resolution))


def total(stages: list[Work]) -> Work:
    return Work(
        "whole run", sum(s.images for s in stages), sum(s.operations for s in stages), False, tuple(stages)
    )


def show_limits() -> None:
    """What does not get faster with more GPUs."""
    cores = value("decoded images/s a core")
    labels = value("bytes of a pseudo-label") / 1e9, _POOL / value("pseudo-labels written a second") / _HOUR
    weights = 4 * parameters(PUBLISHED["l2"], _CLASSES) / 1e9
    print(f"\n{_POOL:,} pool images of {value('bytes of an image') / 1e3:.0f} kB")
    print(f"{'pool':32}{_POOL * value('bytes of an image') / 1e12:10,.1f} TB")
    print(f"{'listing of the shards':32}{_POOL * value('listing, CPU s an image') / _HOUR:10,.1f} core hours")
    print(f"{'scan':32}{_POOL / cores / _HOUR:10,.1f} core hours")
    pairs = _POOL * _HELD_OUT * VARIANTS * value("search for near copies, CPU s a pair")
    print(f"{'search for near copies':32}{pairs / _HOUR:10,.1f} core hours")
    within = _POOL * value("search within the pool, CPU s an image") / _HOUR
    print(f"{'search within the pool':32}{within:10,.1f} core hours")
    print(f"{'pseudo-labels':32}{_POOL * labels[0]:10,.1f} GB, {labels[1]:.1f} core hours to write")
    selection = [_POOL / 1e6 * value(f"selection, {unit} a million rows") for unit in ("CPU s", "s")]
    print(f"{'selection':32}{selection[0]:10,.1f} CPU s, {selection[1]:.1f} s on two busy cores")
    print(f"{'memory of a process':32}{_POOL * value('memory, bytes an image') / 1e9:10,.1f} GB")
    within = _POOL * value("search within the pool, bytes an image") / 1e9
    scan = _POOL * value("memory of the scan, bytes an image") / 1e9
    print(f"{'memory, search within the pool':32}{within:10,.1f} GB, beside {scan:.1f} GB of the scan")
    print(f"{'snapshot: L2, average, optimizer':32}{4 * weights:10,.1f} GB")


def show_needs(stages: list[Work], rate: float) -> None:
    print("\nwhat one GPU needs at this rate   images/s   cores to decode   requests/s      MB/s")
    for stage in stages:
        images = rate * stage.images / stage.operations
        cores, requests, read = (
            images / value("decoded images/s a core"),
            images * stage.requests / stage.images,
            images * stage.read / stage.images,
        )
        print(f"{stage.name:32}{images:10.1f}{cores:18.2f}{requests:13.2f}{read / 1e6:10.1f}")


def value(name: str) -> float:
    return RATES[name][0]


if __name__ == "__main__":
    main()
