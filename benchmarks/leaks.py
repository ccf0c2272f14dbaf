"""Which planted copies of test images does the leak guard find, what else is removed, and what does it cost?

    python benchmarks/leaks.py
    python benchmarks/leaks.py --parts tiny cost

tiny: Tiny ImageNet, 64 pixels. Half of train is labelled; the other half and 2,500 images of other classes
are the pool, with 200 copies of test images of each kind. `many` has no copies, and 6,250 images as test.
cifar: CIFAR-10, 32 pixels, `data.near_duplicates: all`; 4,000 labelled images, the rest of train is the pool.
Images that are removed and were not planted count as clean, although many are true copies: 3.3 % of the test
images have one in train (arXiv 1902.00423).
layouts: scikit-learn's digits on a black canvas, 180 as test and 100 labelled; the rest is the pool.
cost: CPU time of the whole scan with and without the guard, in turn, in one process. pool: time and memory of
the search within a pool of 10 million hashes: random ones, and those of scenes of 100 frames, each of which
has 3 bits of 256 of the hash of its scene flipped.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import resource
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits

from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data.near_duplicates import copies_within
from noisystudent.data.phash import BYTES, Hashes
from noisystudent.data.prepare import prepare
from noisystudent.data.sources import open_sources
from noisystudent.run.rundir import DataDir

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
_COPIES = 200  # of each kind
_FRAMES, _FLIPPED = 100, 3  # frames of a scene, and the bits in which each differs from it
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def crop(image: Image.Image, rng: np.random.Generator, low: float, high: float) -> Image.Image:
    """A random window without a share of each side, at the size of the image."""
    side = round(image.width * (1 - rng.uniform(low, high)))
    left, top = rng.integers(0, image.width - side + 1, 2)
    return image.crop((left, top, left + side, top + side)).resize(image.size, Image.Resampling.BICUBIC)


def scaled(image: Image.Image, share: float) -> Image.Image:
    side = round(image.width * share)
    return image.resize((side, side), Image.Resampling.BICUBIC)


KINDS: dict[str, tuple[Change, int]] = {  # and the JPEG quality of the file
    "JPEG 60": (lambda image, _: image, 60),
    "resize to 3/4": (lambda image, _: scaled(image, 0.75), 95),
    "crop 2-8 %": (lambda image, rng: crop(image, rng, 0.02, 0.08), 90),
    "crop 8-12 %": (lambda image, rng: crop(image, rng, 0.08, 0.12), 90),
    "flip": (lambda image, _: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90),
    "half, 50, crop": (lambda image, rng: scaled(crop(image, rng, 0.02, 0.08), 0.5), 50),
    "brightness ±30 %": (
        lambda image, rng: ImageEnhance.Brightness(image).enhance(rng.choice([0.7, 1.3])),
        90,
    ),
}


def unpacked(archive: Path, folder: Path) -> Path:
    if not archive.exists():
        raise SystemExit(f"needs {archive}")
    with tarfile.open(archive) as members:
        members.extractall(folder, filter="data")
    return folder


def plant(test: Path, pool: Path) -> dict[str, tuple[str, str]]:
    """Write copies of test images into the pool; return kind and original of each, by its file name."""
    rng = np.random.default_rng(0)
    files = sorted(file for file in test.rglob("*") if file.is_file())
    planted = {}
    for number, (kind, (change, quality)) in enumerate(KINDS.items()):
        for file in rng.permutation(np.array(files, object))[:_COPIES]:
            name = f"planted-{number}-{file.parent.name}-{file.stem}.jpg"
            change(Image.open(file).convert("RGB"), rng).save(pool / name, "JPEG", quality=quality)
            planted[name] = kind, file.relative_to(test).as_posix()
    return planted


def scanned(out: Path, folders: dict[str, Path], **options: Any) -> float:
    """Seconds of the processor of a scan into `out`."""
    shutil.rmtree(out, ignore_errors=True)
    specs: dict[str, Any] = {name: (str(folder),) for name, folder in folders.items()}
    config = DataConfig(**specs, workers=0, **options)
    sources = open_sources(config)
    begun = time.process_time()
    prepare(config, sources, DataDir(out), 0, Progress())
    return time.process_time() - begun


def near(out: Path) -> list[dict[str, str]]:
    with (out / "leaks.csv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["reason"] == "near copy"]


def print_recall(out: Path, planted: dict[str, tuple[str, str]], clean: int) -> None:
    """Print the recall of each kind, and what else was removed of `clean` pool images."""
    rows = {row["id"]: row for row in near(out)}
    for kind in KINDS:
        copies = {name: original for name, (one, original) in planted.items() if one == kind}
        right = [
            name for name, original in copies.items() if name in rows and rows[name]["id_there"] == original
        ]
        print(f"  {kind:18}{len(right) / len(copies):7.3f}")
    others = [row for name, row in rows.items() if name not in planted]
    print(f"  clean pool images removed: {len(others)} of {clean:,}, {100 * len(others) / clean:.2f} %")
    images = {(row["found_in"], row["id_there"]) for row in others}
    of_test = sum(name == "test" for name, _ in images)
    print(f"  they are near {len(images)} held-out images, {of_test} of test")


def tiny(root: Path) -> None:
    folders = tiny_folders(root / "tiny")
    clean = sum(1 for file in folders["unlabeled"].rglob("*") if file.is_file())
    many = {"labeled": folders["test"], "test": folders["labeled"], "unlabeled": folders["unlabeled"]}
    scanned(root / "out", many, resolution=64)
    rows = near(root / "out")
    print(f"\nmany: {len(rows)} of {clean:,} clean pool images removed, {100 * len(rows) / clean:.2f} %")
    planted = plant(folders["test"], folders["unlabeled"])
    scanned(root / "out", folders, resolution=64)
    print(f"\ntiny: Tiny ImageNet, 625 images of val and 625 of test, {_COPIES} copies of each kind: recall")
    print_recall(root / "out", planted, clean)


def tiny_folders(root: Path) -> dict[str, Path]:
    for name in ("train", "test", "other-classes"):
        unpacked(DATA / "tinyimagenet" / f"{name}.tar.xz", root)
    pool = root / "pool"
    for folder in sorted((root / "train").iterdir()):
        (pool / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[::2]:
            file.rename(pool / folder.name / file.name)
    return {"labeled": root / "train", "test": root / "test", "unlabeled": pool}


def cifar(root: Path) -> None:
    folder = root / "cifar"
    for name in ("train", "test"):
        unpacked(DATA / "cifar10" / f"{name}.tar.xz", folder)
    for line in (DATA / "cifar10" / "labeled-4000.txt").read_text().split():
        target = folder / "labeled" / Path(line).relative_to("train")
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / line).rename(target)
    folders = {"labeled": folder / "labeled", "test": folder / "test", "unlabeled": folder / "train"}
    planted = plant(folders["test"], folders["unlabeled"])
    scanned(root / "out", folders, resolution=32, near_duplicates="all")
    print(f"\ncifar: CIFAR-10, 400 images of val and 5,000 of test, {_COPIES} copies of each kind: recall")
    print_recall(root / "out", planted, 46_000)


def layouts(root: Path) -> None:
    digits = load_digits()
    for number, row in enumerate(np.random.default_rng(0).permutation(len(digits.target))):
        name = "test" if number < 180 else "labeled" if number < 280 else "pool"
        folder = root / "digits" / name / str(digits.target[row])
        folder.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((digits.images[row] * 255 / 16).astype(np.uint8))
        canvas = np.pad(np.asarray(grey.resize((64, 64), Image.Resampling.BICUBIC)), 16)
        Image.fromarray(canvas).save(folder / f"{row}.png")
    folder = root / "digits"
    folders = {"labeled": folder / "labeled", "test": folder / "test", "unlabeled": folder / "pool"}
    planted = plant(folders["test"], folders["unlabeled"])
    scanned(root / "out", folders, resolution=64)
    print("\nlayouts: digits, 180 images of test and 10 of val, up to 180 copies of each kind: recall")
    print_recall(root / "out", planted, 1_517)


def cost(root: Path, repeats: int) -> None:
    print(f"\ncost: CPU time of the scan with the guard over that without it, {repeats} repeats")
    folders = tiny_folders(root / "cost")
    _compare("64 pixels, resident", root, folders, repeats, resolution=64)
    photos = unpacked(DATA / "imagenet-samples" / "photos.tar", root / "photos")
    files = sorted(file for file in photos.rglob("*") if file.is_file())
    for copy in range(20):  # as 800 photographs; those with the same bytes leave the pool after the scan
        for file in files:
            (photos / f"{copy}-{file.name}").write_bytes(file.read_bytes())
    folders = {"labeled": folders["test"], "unlabeled": photos}
    for plane in ("resident", "streamed"):
        _compare(f"photographs at 224, {plane}", root, folders, repeats, resolution=224, plane=plane)


def _compare(title: str, root: Path, folders: dict[str, Path], repeats: int, **options: Any) -> None:
    """Print the ratio of each repeat, after one that warms up."""
    ratios = []
    for _ in range(repeats + 1):
        without = scanned(root / "out", folders, near_duplicates="off", **options)
        ratios.append(scanned(root / "out", folders, **options) / without)
    ratios = ratios[1:]
    print(f"  {title:34}{statistics.median(ratios):6.3f} ({min(ratios):.3f} … {max(ratios):.3f})")


def pool(count: int) -> None:
    print(f"\npool: {count:,} hashes; bytes an image beside the 32 of its hash")
    for kind in (random_hashes, scene_hashes):
        # each in a process of its own, because peak memory never falls
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            seconds, more, copies = process.submit(_measured, kind, count).result()
        title = kind.__name__.replace("_", " ")
        print(f"  {title:16}{seconds:8.1f} s of CPU{more:6.0f} bytes an image{copies:12,} near copies")


def _measured(kind: Callable[[int], Hashes], count: int) -> tuple[float, float, int]:
    """Seconds of the processor, bytes an image at the peak, and images that are near an earlier one."""
    codes = kind(count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    later, _, _ = copies_within(codes)
    seconds = time.process_time() - begun
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / count
    return seconds, more, len(later)


def random_hashes(count: int) -> Hashes:
    return np.random.default_rng(0).integers(0, 256, (count, BYTES), dtype=np.uint8)


def scene_hashes(count: int) -> Hashes:
    rng = np.random.default_rng(0)
    codes = np.empty((count, BYTES), np.uint8)
    for start in range(0, count, _FRAMES):  # scene by scene: large temporary arrays would raise the peak
        scene = codes[start : start + _FRAMES]
        scene[:] = rng.integers(0, 256, BYTES, dtype=np.uint8)
        for bit in rng.integers(0, 8 * BYTES, (_FLIPPED, len(scene))):
            scene[np.arange(len(scene)), bit // 8] ^= (1 << bit % 8).astype(np.uint8)
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["pool", "tiny", "cifar", "layouts", "cost"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--count", type=int, default=10_000_000, help="hashes of the part `pool`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[Path], None]] = {
        "pool": lambda _: pool(arguments.count),
        "tiny": tiny,
        "cifar": cifar,
        "layouts": layouts,
        "cost": lambda root: cost(root, arguments.repeats),
    }
    for name in arguments.parts:
        with tempfile.TemporaryDirectory() as root:
            parts[name](Path(root))


if __name__ == "__main__":
    main()
