"""What share of the time do checksums take: in the demo, in labelling, and in a scan?

    python benchmarks/checksums.py
    python benchmarks/checksums.py --rows 1000000 --images 100000 --repeats 3

Every call of `checksum` is timed, in all threads, and divided by the time of the whole. demo: `noisystudent
demo`, made anew each time. labelling: --rows blank images by a model that has its answers ready, 10 classes:
nothing else takes time there. scan: --images random images of 32 pixels in an .npz file, which needs no
decoding, and the checksums of all files it writes. Both are the worst case for the share.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from writing import write_ours

from noisystudent.cli import main as noisystudent
from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data.prepare import prepare
from noisystudent.data.sources import open_sources
from noisystudent.pseudo_label import label
from noisystudent.run import checksums
from noisystudent.run.rundir import DataDir


class Timed:
    """Calls `checksum` and adds up its time in seconds and the bytes it read."""

    def __init__(self) -> None:
        self._checksum = checksums.checksum
        self.seconds, self.bytes = 0.0, 0

    def __call__(self, path: Path) -> checksums.Checksum:
        begun = time.perf_counter()
        result = self._checksum(path)
        self.seconds += time.perf_counter() - begun
        self.bytes += path.stat().st_size
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/checksums"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 512, 10), np.float32))
    arguments.batch = 512
    works: dict[str, Callable[[], None]] = {
        "scan": lambda: scan(arguments.work, arguments.images),
        "labelling": lambda: write_ours(logits, arguments.rows, arguments),
        "demo": lambda: demo(arguments.work),
    }
    for name, work in works.items():
        measured = [measure(work) for _ in range(arguments.repeats)]
        shares = sorted(timed.seconds / total for timed, total in measured)
        timed, total = measured[0]
        print(
            f"{name:10} {len(shares)} repeats: checksums take {shares[len(shares) // 2]:.2%}"
            f" ({shares[0]:.2%} … {shares[-1]:.2%}) of the time; the first:"
            f" {timed.seconds:.3f} of {total:.1f} s, {timed.bytes / 2**20:,.1f} MiB read"
        )


def measure(work: Callable[[], None]) -> tuple[Timed, float]:
    timed = Timed()
    with patch.object(checksums, "checksum", timed), patch.object(label, "checksum", timed):
        begun = time.perf_counter()
        work()
        return timed, time.perf_counter() - begun


def demo(folder: Path) -> None:
    shutil.rmtree(folder / "demo", ignore_errors=True)
    noisystudent(["demo", "--out", str(folder / "demo")])


def scan(folder: Path, count: int) -> None:
    pool = folder / "pool.npz"
    if not pool.exists():
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.savez(pool, images=images)
        np.savez(folder / "labeled.npz", images=images[:200], labels=np.arange(200) % 10)
    out = DataDir(folder / "data")
    shutil.rmtree(out.path, ignore_errors=True)
    config = DataConfig(
        labeled=(str(folder / "labeled.npz"),), unlabeled=(str(pool),), resolution=32, val_fraction=0.1
    )
    prepare(config, open_sources(config), out, 0, Progress())
    checksums.checksums(out.path, map(Path, (entry.path for entry in os.scandir(out.path))))


if __name__ == "__main__":
    main()
