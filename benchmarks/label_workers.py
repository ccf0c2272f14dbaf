"""Do two workers label twice as fast as one?

    python benchmarks/label_workers.py
    python benchmarks/label_workers.py --workers 4 --images 100000 --repeats 3

Each worker is a process with one thread, and labels parts of one pool of random images in memory, as
`label --worker` does. The clock starts when all workers have their network, and ends when the last one has
ended. Every repeat times one worker and several in turn, and beside each the ceiling: as many processes
that run only the network, each on its share. Ratios are taken within a repeat: median (least … greatest).
The labels of one and of several are compared. The aim is 1.8 with two workers on two quiet cores. A worker
waits up to half a second and a part at the end, which counts in a short labelling.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.config import ModelConfig, PseudoLabelConfig
from noisystudent.console import Progress
from noisystudent.models.registry import build_model
from noisystudent.pseudo_label import label_images
from noisystudent.run.rundir import LabelsDir
from noisystudent.runtime import resolve_device

CONTEXT = multiprocessing.get_context("spawn")
SIDE, CLASSES, BATCH = 32, 10, 256


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=240_000)
    parser.add_argument("--part", type=int, default=1_024, help="images of a part")
    parser.add_argument("--model", default="resnet8_16")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    one, several, alone, ceiling = (list[float]() for _ in range(4))
    for repeat in range(options.repeats):
        labels = set()
        for workers, seconds, plain in ((1, one, alone), (options.workers, several, ceiling)):
            with tempfile.TemporaryDirectory() as folder:
                seconds.append(timed(work, workers, Path(folder), options))
                parts = LabelsDir(Path(folder)).parts()
                labels.add(tuple((path.name, path.read_bytes()) for path in parts))
            plain.append(timed(forward, workers, Path(), options))
            rates = [f"{options.images / times[-1]:10,.0f}" for times in (seconds, plain)]
            print(
                f"repeat {repeat + 1}, workers {workers}: {rates[0]} images/s, the network alone {rates[1]}",
                flush=True,
            )
        if len(labels) != 1:
            raise SystemExit("the labels of one worker and of several differ")
    print(
        f"{options.workers} workers against one, {options.model}, {options.images:,} images of {SIDE} pixels,"
        f" parts of {options.part:,}: {ratio(one, several)} times as fast; processes with the network alone"
        f" {ratio(alone, ceiling)}; share of that ceiling {ratio(ceiling, several)}"
    )


def ratio(upper: list[float], lower: list[float]) -> str:
    """The median of the ratios of each repeat, with the least and the greatest."""
    ratios = [a / b for a, b in zip(upper, lower, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"


def timed(task: Callable[..., None], workers: int, out: Path, options: argparse.Namespace) -> float:
    """Seconds in which `workers` processes do `task`."""
    barrier = CONTEXT.Barrier(workers + 1)
    processes = [
        CONTEXT.Process(target=task, args=(number, workers, out, barrier, options))
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.monotonic()
    for process in processes:
        process.join()
    seconds = time.monotonic() - start
    if any(process.exitcode for process in processes):
        raise SystemExit("a worker has failed")
    return seconds


def prepared(options: argparse.Namespace) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The pool, and what predicts a batch of it: with one thread, as every command on a CPU begins."""
    torch.set_num_threads(1)
    resolve_device("cpu")  # freed memory stays in the process
    rng = np.random.default_rng(0)
    pool = torch.from_numpy(rng.integers(0, 256, (options.images, 3, SIDE, SIDE), dtype=np.uint8))
    model = build_model(ModelConfig(name=options.model), CLASSES, SIDE, seed=0, pretrained=False).eval()

    def predict(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(batch)
        return logits

    predict(pool[:BATCH])  # the first call is slower
    return pool, predict


def forward(number: int, workers: int, _out: Path, barrier: Barrier, options: argparse.Namespace) -> None:
    """The ceiling: only the network, on this process's share of the pool."""
    pool, predict = prepared(options)
    barrier.wait()
    for batch in pool.chunk(workers)[number].split(BATCH):
        predict(batch)


def work(number: int, _workers: int, out: Path, barrier: Barrier, options: argparse.Namespace) -> None:
    """Label the pool as one of several workers."""
    pool, predict = prepared(options)
    hashes = np.random.default_rng(0).integers(0, 256, (options.images, 16), dtype=np.uint8)

    def images(requests: Iterator[NDArray[np.int64]]) -> Iterator[Tensor]:
        for rows in requests:
            yield pool[torch.from_numpy(rows)]

    barrier.wait()
    label_images(
        lambda _images, _most: (predict, BATCH),
        images,
        lambda rows: [f"{row}.png" for row in rows],
        hashes,
        num_classes=CLASSES,
        config=PseudoLabelConfig(batch_size=BATCH, part_size=options.part),
        out=out,
        task="labels",
        progress=Progress(),
        join=(lambda: None) if number else None,
    )


if __name__ == "__main__":
    main()
