"""Memory of the pipeline as the pool grows: scan, label, select and train on 10,000 to 1,000,000 images.

    python benchmarks/memory.py
    python benchmarks/memory.py --sizes 10000 100000

The images are generated once under --work: 32-pixel PNG in tar shards of 10,000, all different. The leak
guard compares them all (`data.near_duplicates all`). The first steps are those of a small student, by the
trainer of a run, without points of a curve on val. Each size runs in a process of its own. Counted, sampled
every 50 ms: `anonymous` is the memory that a process holds for itself (Pss_Anon of
/proc/PID/smaps_rollup), of the main process, and of all its workers together. Pages of memory-mapped files
are the kernel's cache, which it takes back when memory is short; they are not in `anonymous`, but in
`resident` (ru_maxrss), beside libraries. Growth is the difference of two peaks divided by the difference in
images.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from meter import Meter
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.config import (
    DataConfig,
    LearnerConfig,
    ModelConfig,
    PseudoLabelConfig,
    SelectionConfig,
    TrainConfig,
)
from noisystudent.console import Progress
from noisystudent.data.loader import SelectedPool, requested_batches
from noisystudent.data.prepare import Dataset, open_dataset, prepare
from noisystudent.data.sources import open_sources
from noisystudent.data.workers import worker_count
from noisystudent.pseudo_label import label_images, read_targets
from noisystudent.records import PseudoLabels, Selection
from noisystudent.run.rundir import DataDir, ModelDir
from noisystudent.runtime import resolve_device
from noisystudent.selection import select, selected_rows
from noisystudent.self_training.trainer import train
from noisystudent.self_training.training import Training

_CLASSES, _SIDE, _LABELED, _SHARD = 10, 32, 200, 10_000
_LIMIT = 100  # bytes an image
_STEPS, _BATCH = 20, 128
_CPU = resolve_device("cpu")
Row = dict[str, Any]
"""What one run took: images, kept, bytes of memory, and `stages`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/memory"))
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.work, arguments.measure)))
        return
    rows = []
    for size in arguments.sizes:
        generate(arguments.work, size)
        command = [sys.executable, __file__, "--work", str(arguments.work), "--measure", str(size)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    show(rows)


def generate(work: Path, size: int) -> None:
    """`labeled/<class>/` once, and `pool-<size>/` of links to shards, which all sizes share."""
    for number in range(_LABELED):
        folder = work / "labeled" / f"class-{number % _CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04d}.png").write_bytes(next(_images(-1 - number, 1, number % _CLASSES)))
    pool = work / f"pool-{size}"
    pool.mkdir(exist_ok=True)
    for shard in range(-(-size // _SHARD)):
        count = min(_SHARD, size - shard * _SHARD)
        path = work / "shards" / f"{shard:05d}-{count}.tar"
        if not path.exists():
            _write_shard(path, shard, count)
        link = pool / f"{shard:05d}.tar"
        link.unlink(missing_ok=True)
        os.link(path, link)


def _write_shard(path: Path, shard: int, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        for number, data in enumerate(_images(shard, count)):
            member = tarfile.TarInfo(f"{number // 1000:03d}/{number:08d}.png")
            member.size = len(data)
            file.write(member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
        file.write(bytes(1024))
    partial.rename(path)


def _images(key: int, count: int, number: int | None = None) -> Iterator[bytes]:
    """PNG files of 4x4 coloured squares, tinted by class; a random row of pixels makes each one unique."""
    rng = np.random.default_rng(key & 0xFFFFFFFF)
    for _ in range(count):
        tint = np.random.default_rng(rng.integers(_CLASSES) if number is None else number).integers(0, 256, 3)
        squares = (rng.integers(0, 256, (4, 4, 3)) + tint) // 2
        pixels = squares.astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        pixels[0] = rng.integers(0, 256, (_SIDE, 3))
        lines = np.insert(pixels.reshape(_SIDE, -1), 0, 0, axis=1)  # filter type 0 before each line
        header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 1)), (b"IEND", b""))
        yield b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )


def measure(work: Path, size: int) -> Row:
    """Scan, label and select one pool, and train on it; what each stage took."""
    out = work / f"run-{size}"
    shutil.rmtree(out, ignore_errors=True)
    with Meter().running() as meter:
        with meter.stage("scan"):
            dataset = _scan(work, size, out / "data")
        with meter.stage("label"):
            labels = _label(dataset, out / "labels")
        with meter.stage("select"):
            config = SelectionConfig(threshold=0.3)
            selection = select(labels, config, seed=0, out=out / "selection.parquet")
        with meter.stage("train"):
            kept = _train(dataset, labels, selection, ModelDir(out / "student"))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    shutil.rmtree(out)
    return {
        "images": len(dataset.pool),
        "kept": kept,
        "resident": resident,
        "main": max(stage["main"] for stage in meter.stages.values()),
        "workers": max(stage["workers"] for stage in meter.stages.values()),
        "stages": {name: meter.stages[name] for name in ("scan", "label", "select", "train")},
    }


def _scan(work: Path, size: int, out: Path) -> Dataset:
    config = DataConfig(
        labeled=(str(work / "labeled"),),
        unlabeled=(str(work / f"pool-{size}"),),
        resolution=_SIDE,
        plane="streamed",
        near_duplicates="all",
    )
    prepare(config, open_sources(config), DataDir(out), 0, Progress())
    return open_dataset(DataDir(out), config, open_sources(config))


def _label(dataset: Dataset, out: Path) -> PseudoLabels:
    """The teacher is a linear model of an image's 16 pooled pixels: the classes' mean colours."""
    labeled, pool = dataset.labeled, dataset.pool
    pooled = _pooled(labeled.fetch(np.arange(len(labeled)), _SIDE))
    weights = torch.stack([pooled[labeled.labels == number].mean(dim=0) for number in range(_CLASSES)])

    def predict(images: Tensor) -> Tensor:
        return -20 * torch.cdist(_pooled(images), weights)

    def images(requests: Iterator[NDArray[np.int64]]) -> Iterator[Tensor]:
        return requested_batches(pool, requests, resolution=_SIDE, device=_CPU, workers=worker_count(None))

    return label_images(
        lambda count, most: (predict, 512),
        images,
        pool.ids,
        pool.content_hash,
        num_classes=_CLASSES,
        config=PseudoLabelConfig(),
        out=out,
        task="labels",
        progress=Progress(),
    )


def _pooled(images: Tensor) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)


def _train(dataset: Dataset, labels: PseudoLabels, selection: Selection, folder: ModelDir) -> int:
    """The first steps of a student; returns how many images were kept."""
    rows, repeats = selected_rows(selection)
    training = Training(
        learner=LearnerConfig(
            model=ModelConfig(name="resnet8_16"), train=TrainConfig(steps=_STEPS, batch_size=_BATCH)
        ),
        dataset=dataset,
        folder=folder,
        seed=0,
        resolution=_SIDE,
        device=_CPU,
        workers=worker_count(None),
        ratios=(1,),
        curve=False,
    )
    targets = read_targets(labels, rows, hard=False, out=folder.targets)
    train(training, SelectedPool(rows, repeats, targets), Progress(), None)
    return len(rows)


def show(rows: list[Row]) -> None:
    """One line a size and stage, one a size, and the growth from each size to the next."""
    print("     images  stage      seconds  images/s  main anonymous  workers anonymous")
    for row in rows:
        for name, stage in row["stages"].items():
            rate = row["images"] / stage["seconds"]
            memory = f"{_mib(stage['main']):>16}{_mib(stage['workers']):>19}"
            print(f"{row['images']:11,}  {name:9}{stage['seconds']:9.1f}{rate:10,.0f}{memory}")
    print("\n     images       kept  main anonymous  workers anonymous  main resident  (whole run)")
    for row in rows:
        memory = f"{_mib(row['main']):>16}{_mib(row['workers']):>19}{_mib(row['resident']):>15}"
        print(f"{row['images']:11,}{row['kept']:11,}{memory}")
    print(f"\ngrowth of the main process in bytes an image (anonymous: below {_LIMIT} is the aim)")
    print("              images  anonymous  resident     scan    label   select    train")
    for low, high in [*pairwise(rows), *([(rows[0], rows[-1])] if len(rows) > 2 else [])]:
        pairs = ((low["stages"][name]["main"], stage["main"]) for name, stage in high["stages"].items())
        stages = "".join(f"{_growth(low, high, *pair):9.1f}" for pair in pairs)
        peaks = [_growth(low, high, low[name], high[name]) for name in ("main", "resident")]
        print(f"{low['images']:9,}-{high['images']:<10,}{peaks[0]:11.1f}{peaks[1]:10.1f}{stages}")


def _growth(low: Row, high: Row, before: float, after: float) -> float:
    return float((after - before) / (high["images"] - low["images"]))


def _mib(value: float) -> str:
    return f"{value / 2**20:,.1f} MiB"


if __name__ == "__main__":
    main()
