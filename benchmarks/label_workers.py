"""Do two workers label twice as fast as one?

    python benchmarks/label_workers.py
    python benchmarks/label_workers.py --workers 4 --images 100000 --repeats 3

Each worker is a process with one thread, and labels parts of one pool of random images in memory, as
`label --worker` does. The clock starts when all workers have their network, and ends when the last one has
ended. Every repeat times one worker and several in turn; ratios are taken within a repeat: median (least …
greatest). The labels of both are compared. The aim is 1.8 with two workers on two quiet cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
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

CONTEXT = multiprocessing.get_context("spawn")
SIDE, CLASSES, BATCH = 32, 10, 256


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--part", type=int, default=1_024, help="images of a part")
    parser.add_argument("--model", default="resnet8_16")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    times: dict[int, list[float]] = {1: [], options.workers: []}
    for repeat in range(options.repeats):
        labels = set()
        for workers, seconds in times.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds.append(timed(workers, Path(folder), options))
                parts = LabelsDir(Path(folder)).parts()
                labels.add(tuple((path.name, path.read_bytes()) for path in parts))
            rate = options.images / seconds[-1]
            print(f"repeat {repeat + 1}, workers {workers}: {rate:10,.0f} images/s", flush=True)
        if len(labels) != 1:
            raise SystemExit("the labels of one worker and of several differ")
    ratios = [one / several for one, several in zip(times[1], times[options.workers], strict=True)]
    low, high = min(ratios), max(ratios)
    print(
        f"{options.workers} workers against one, {options.model}, {options.images:,} images of {SIDE} pixels,"
        f" parts of {options.part:,}: {statistics.median(ratios):.2f} times as fast ({low:.2f} … {high:.2f})"
    )


def timed(workers: int, out: Path, options: argparse.Namespace) -> float:
    """Seconds in which `workers` processes label the pool."""
    barrier = CONTEXT.Barrier(workers + 1)
    processes = [
        CONTEXT.Process(target=work, args=(number > 0, out, barrier, options)) for number in range(workers)
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


def work(joins: bool, out: Path, barrier: Barrier, options: argparse.Namespace) -> None:
    """Label the pool as one of several workers."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pool = torch.from_numpy(rng.integers(0, 256, (options.images, 3, SIDE, SIDE), dtype=np.uint8))
    hashes = rng.integers(0, 256, (options.images, 16), dtype=np.uint8)
    model = build_model(ModelConfig(name=options.model), CLASSES, SIDE, seed=0, pretrained=False).eval()

    def images(requests: Iterator[NDArray[np.int64]]) -> Iterator[Tensor]:
        for rows in requests:
            yield pool[torch.from_numpy(rows)]

    def predict(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(batch)
        return logits

    predict(pool[:BATCH])  # the first call is slower
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
        join=(lambda: None) if joins else None,
    )


if __name__ == "__main__":
    main()
