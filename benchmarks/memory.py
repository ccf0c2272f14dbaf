"""Memory of the pipeline as the pool grows: scan, label, select and batch 10,000 to 1,000,000 images.

    python benchmarks/memory.py
    python benchmarks/memory.py --sizes 10000 100000

The images are generated once under --work: 32-pixel PNG in tar shards of 10,000, all different. Each size
runs in a process of its own. Counted, sampled every 50 ms: `anonymous` is the memory that a process holds for
itself (Pss_Anon of /proc/PID/smaps_rollup), of the main process, and of all its workers together. Pages of
memory-mapped files are the kernel's cache, which it takes back when memory is short; they are not in
`anonymous`, but in `resident` (ru_maxrss), beside libraries. Growth is the difference of two peaks divided by
the difference in images.
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
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.config import DataConfig, PseudoLabelConfig, SelectionConfig
from noisystudent.console import Progress
from noisystudent.data.loader import SelectedPool, joint_batches, requested_batches
from noisystudent.data.prepare import Dataset, open_dataset, prepare
from noisystudent.data.sources import open_sources
from noisystudent.data.workers import worker_count
from noisystudent.pseudo_label import label_images, read_targets
from noisystudent.records import PseudoLabels, Selection
from noisystudent.run.rundir import DataDir
from noisystudent.runtime import resolve_device
from noisystudent.selection import select, selected_rows

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


class Meter:
    """Peaks of memory in bytes, and seconds, a stage."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self._stage = "start"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @contextmanager
    def running(self) -> Iterator[Meter]:
        self._sample()
        self._thread.start()
        yield self
        self._over.set()
        self._thread.join()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._stage = name
        begun = time.perf_counter()
        yield
        self._sample()
        self.stages[name]["seconds"] = time.perf_counter() - begun
        self._stage = "between"

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self._sample()

    def _sample(self) -> None:
        peaks = self.stages.setdefault(self._stage, {"main": 0.0, "workers": 0.0, "seconds": 0.0})
        peaks["main"] = max(peaks["main"], _anonymous(os.getpid()))
        peaks["workers"] = max(peaks["workers"], sum(map(_anonymous, _descendants(os.getpid()))))


def _anonymous(process: int) -> int:
    """Pss_Anon in bytes; 0 for a process that has ended."""
    try:
        with open(f"/proc/{process}/smaps_rollup") as file:
            lines = dict(line.split(":", 1) for line in file.read().splitlines()[1:])
        return int(lines["Pss_Anon"].split()[0]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _descendants(process: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = [int(child) for child in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def measure(work: Path, size: int) -> Row:
    """Scan, label, select and batch one pool; what each stage took."""
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
        with meter.stage("batches"):
            kept = _batches(dataset, labels, selection, out / "targets.npy")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    shutil.rmtree(out)
    return {
        "images": len(dataset.pool),
        "kept": kept,
        "resident": resident,
        "main": max(stage["main"] for stage in meter.stages.values()),
        "workers": max(stage["workers"] for stage in meter.stages.values()),
        "stages": {name: meter.stages[name] for name in ("scan", "label", "select", "batches")},
    }


def _scan(work: Path, size: int, out: Path) -> Dataset:
    config = DataConfig(
        labeled=(str(work / "labeled"),),
        unlabeled=(str(work / f"pool-{size}"),),
        resolution=_SIDE,
        plane="streamed",
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


def _batches(dataset: Dataset, labels: PseudoLabels, selection: Selection, out: Path) -> int:
    """Some training batches; returns how many images were kept."""
    rows, repeats = selected_rows(selection)
    targets = read_targets(labels, rows, hard=False, out=out)
    batches = joint_batches(
        dataset.labeled,
        dataset.pool,
        SelectedPool(rows, repeats, targets),
        labeled_batch=_BATCH,
        pool_batch=_BATCH,
        resolution=_SIDE,
        seed=0,
        start=0,
        stop=_STEPS,
        device=_CPU,
        workers=worker_count(None),
    )
    for batch in batches:
        assert batch.images.shape == (2 * _BATCH, 3, _SIDE, _SIDE)
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
    print("              images  anonymous  resident     scan    label   select  batches")
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
