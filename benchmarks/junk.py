"""Which score finds strangers in a pool, and what does it give the student to drop them?

    python benchmarks/junk.py --labels 5 20 50 --seeds 0 1 2

Lays 25 classes of Tiny ImageNet out as benchmarks/pretrained.py does; a sixth of the pool is strangers,
images of 50 other classes. For each number of labels a class, heads on features of EfficientNet-lite0
(ImageNet weights, 224 pixels) are trained for two iterations with `selection.junk` off and drop. Weight decay
0.05 and temperature 0.5 are about what folds choose for them. With --scratch, also a resnet8_32 from scratch
at 32 pixels, on 200 labels a class.

First teacher: area under the ROC curve of wanted pool images against strangers, among all pool images, and
`kept` among those above a confidence of 0.3; share of strangers removed where 5 % of the wanted images are.
energy: logsumexp of the logits. max-softmax: the confidence. Mahalanobis: distance to the nearest class mean
with one covariance, shrunk as of Ledoit and Wolf, of the features as they are, or scaled to length 1.
`limit`: what the limit of `selection.junk` removes, from 5 % of val, or out of fold where val is small.

Students: top-1 on 625 test images, and the mean paired difference to off with its 95 % interval over test
images, and over seeds in brackets; shares of wanted pool images and of strangers that are kept, and of right
labels among the kept wanted images.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from cifar10 import _SHARED
from numpy.typing import NDArray
from pretrained import _difference, _link_weights, lay_out, unpack
from safetensors import safe_open
from scipy.special import logsumexp, softmax
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from noisystudent import recipes
from noisystudent.console import Progress
from noisystudent.embeddings.parts import Features
from noisystudent.inference.embed import embed
from noisystudent.inference.load import load_predictor
from noisystudent.metrics.power import LEAST_IMAGES
from noisystudent.metrics.scores import load_energies, load_predictions
from noisystudent.run.rundir import EmbeddingsDir
from noisystudent.selection import energy_limit

_REJECTION, _THRESHOLD, _SCRATCH_LABELS = 0.05, 0.3, 200
_CELLS = ("off", "drop")
Floats = NDArray[np.float32]
Scores = dict[str, Floats]
"""Score of each image, by set: labeled, val, pool; high for images like the labelled ones."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, nargs="*", default=[5, 20, 50], help="labelled images a class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scratch", action="store_true", help="a small network from scratch, too")
    parser.add_argument("--table", action="store_true", help="run nothing, and print the tables")
    parser.add_argument("--data", type=Path, default=_SHARED / "tinyimagenet")
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/pretrained"))
    arguments = parser.parse_args()
    if not arguments.data.exists():
        sys.exit(f"{arguments.data} is missing: it holds the images")
    work = arguments.work.absolute()
    unpack(arguments.data, work)
    _link_weights(0, work)
    if not arguments.table:
        for seed in arguments.seeds:
            for labels in arguments.labels:
                run_heads(work, labels, seed)
            if arguments.scratch:
                run_scratch(work, seed)
    for labels in arguments.labels:
        folders = [_run(work, labels, seed, "off") for seed in arguments.seeds]
        show_scores(f"lite0, {labels} labels a class", [cached(folder) for folder in folders])
        show_students(work, labels, arguments.seeds)
    if arguments.scratch:
        found = [embedded(work, seed) for seed in arguments.seeds]
        show_scores(f"resnet8_32 from scratch, {_SCRATCH_LABELS} labels a class", found)


# --- the runs ---


def run_heads(work: Path, labels: int, seed: int) -> None:
    """Two cells, which share teacher, folds and first labels; features are copied from runs beside them."""
    split, out = lay_out(work, labels, seed), _run(work, labels, seed, "off").parents[1]
    matrix = yaml.safe_load(recipes.text("ablation-pretrained"))
    common = matrix["common"] | {"control": "none", "folds": 5, "choose": False, "students": [{}, {}]}
    common["teacher"]["train"]["weight_decay"] = 0.05
    cells = {
        name: {"student": {"pseudo_label": {"temperature": 0.5}, "selection": {"junk": name}}}
        for name in _CELLS
    }
    file = work / "junk.yaml"
    file.write_text(yaml.safe_dump({"recipe": "folder", "base": "drop", "common": common, "cells": cells}))
    call = ["ablate", str(file), "--out", str(out), "--seeds", str(seed), *_images(split)]
    subprocess.run([sys.executable, "-m", "noisystudent", *call], check=True, cwd=work)


def run_scratch(work: Path, seed: int) -> None:
    split = lay_out(work, _SCRATCH_LABELS, seed)
    call = ["train", "cifar10-cpu", "--out", str(_scratch(work, seed)), "--seed", str(seed), *_images(split)]
    call = [each for each in call if each not in ("--unlabeled", str(split / "pool"))]
    fields = {"teacher.model.name": "resnet8_32", "evaluate.tests": "[]", "data.val_fraction": "0.2"}
    call += [part for name, value in fields.items() for part in (f"--{name}", value)]
    subprocess.run([sys.executable, "-m", "noisystudent", *call], check=True)


def _images(split: Path) -> list[str]:
    named = {"labeled": "labeled", "unlabeled": "pool", "test": "test"}
    return [part for flag, name in named.items() for part in (f"--{flag}", str(split / name))]


def _run(work: Path, labels: int, seed: int, cell: str) -> Path:
    return work / "runs" / f"junk-{labels}-seed-{seed}" / cell / f"seed-{seed}"


def _scratch(work: Path, seed: int) -> Path:
    return work / "runs" / f"junk-scratch-seed-{seed}"


# --- the scores ---


def cached(run: Path) -> tuple[dict[str, Scores], NDArray[np.bool_], Floats]:
    """Scores of the first teacher of a run on features, strangers of the pool, and energies for the limit."""
    manifest = pq.read_table(run / "data" / "manifest.parquet")
    sets, labels = manifest["set"].to_numpy(), manifest["label"].to_numpy()
    features = {}
    for name in ("labeled", "val", "pool"):
        stored = Features(EmbeddingsDir(run / "embeddings").features(name))
        features[name] = stored(np.arange(len(stored))).numpy()
    ids = np.array(manifest["id"].to_pylist())[sets == "pool"]
    junk = np.array([name.startswith("junk/") for name in ids])
    weights = run / "iteration-0" / "teacher" / "model.safetensors"
    found = scores(features, labels[sets == "labeled"], weights)
    unseen = found["energy"]["val"]
    if len(unseen) < LEAST_IMAGES:
        out_of_fold = load_energies(run / "iteration-0" / "out-of-fold.npz")
        assert out_of_fold is not None
        unseen = out_of_fold
    return found, junk, unseen


def embedded(work: Path, seed: int) -> tuple[dict[str, Scores], NDArray[np.bool_], Floats]:
    """The same of the network from scratch, with the energies of val."""
    run, split = _scratch(work, seed), lay_out(work, _SCRATCH_LABELS, seed)
    manifest = pq.read_table(run / "data" / "manifest.parquet", columns=["content_hash", "set", "label"])
    known = {row["content_hash"]: (row["set"], row["label"]) for row in manifest.to_pylist()}
    predictor, features, rows = load_predictor(run, "cpu"), {}, {}
    for folder in ("labeled", "pool"):
        out = run.with_name(f"{run.name}-{folder}")
        stored, _ = embed(predictor, split / folder, out, progress=Progress())
        features[folder] = stored(np.arange(len(stored))).numpy()
        rows[folder] = pq.read_table(out / "images.parquet").to_pylist()
    of_labeled = [known[row["content_hash"]] for row in rows["labeled"]]
    is_val = np.array([name == "val" for name, _ in of_labeled])
    labels = np.array([label for _, label in of_labeled])[~is_val]
    junk = np.array([row["id"].startswith("junk/") for row in rows["pool"]])
    every = features["labeled"]
    by_set = {"labeled": every[~is_val], "val": every[is_val], "pool": features["pool"]}
    found = scores(by_set, labels, run / "iteration-0" / "teacher" / "model.safetensors")
    return found, junk, found["energy"]["val"]


def scores(features: dict[str, Floats], labels: NDArray[np.int64], weights: Path) -> dict[str, Scores]:
    """Every score of the images of every set, from features and the classifier in a file of weights."""
    with safe_open(weights, "numpy") as file:
        name = file.metadata().get("classifier", "fc")  # of a resnet8
        weight, bias = (file.get_tensor(f"{name}.{part}") for part in ("weight", "bias"))
    logits = {name: each @ weight.T + bias for name, each in features.items()}
    scaled = {name: each / np.linalg.norm(each, axis=1, keepdims=True) for name, each in features.items()}
    return {
        "energy": {name: logsumexp(each, axis=1) for name, each in logits.items()},
        "max-softmax": {name: softmax(each, axis=1).max(axis=1) for name, each in logits.items()},
        "Mahalanobis": mahalanobis(features, labels),
        "Mahalanobis, length 1": mahalanobis(scaled, labels),
    }


def mahalanobis(features: dict[str, Floats], labels: NDArray[np.int64]) -> Scores:
    """Negative squared distance to the nearest class mean (Lee et al. 2018, arXiv 1807.03888)."""
    labeled = features["labeled"]
    means = np.stack([labeled[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
    covariance = LedoitWolf(assume_centered=True).fit(labeled - means[labels]).covariance_
    whiten = np.linalg.cholesky(np.linalg.inv(covariance)).astype(np.float32)
    centers = means @ whiten

    def nearest(images: Floats) -> Floats:
        white = images @ whiten
        cross = (white**2).sum(axis=1)[:, None] - 2 * white @ centers.T + (centers**2).sum(axis=1)
        near: Floats = -cross.min(axis=1)
        return near

    return {name: nearest(each) for name, each in features.items()}


def show_scores(title: str, runs: list[tuple[dict[str, Scores], NDArray[np.bool_], Floats]]) -> None:
    """One line a score: means over the runs, with the smallest and largest AUROC."""
    print(f"\n{title}, {len(runs)} seeds: first teacher")
    print(f"{'':24}{'AUROC':>7}{'(range)':>15}{'kept':>7}{'strangers out':>15}")
    for name in runs[0][0]:
        rows = []
        for found, junk, _ in runs:
            own, kept = found[name]["pool"], found["max-softmax"]["pool"] > _THRESHOLD
            areas = roc_auc_score(~junk, own), roc_auc_score(~junk[kept], own[kept])
            rows.append((*areas, (own < np.quantile(own[~junk], _REJECTION))[junk].mean()))
        area, of_kept, out = np.mean(rows, axis=0)
        span = f"({min(row[0] for row in rows):.3f}-{max(row[0] for row in rows):.3f})"
        print(f"{name:24}{area:7.3f}{span:>15}{of_kept:7.3f}{out:15.1%}")
    removed = []
    for found, junk, unseen in runs:
        limit, energies = energy_limit(unseen, _REJECTION), found["energy"]["pool"]
        below = energies < (-np.inf if limit is None else limit)
        removed.append((below[junk].mean(), below[~junk].mean()))
    strangers, wanted = np.mean(removed, axis=0)
    print(f"limit: removes {strangers:.1%} of the strangers and {wanted:.1%} of the wanted images")


# --- the students ---


def show_students(work: Path, labels: int, seeds: list[int]) -> None:
    print(f"lite0, {labels} labels a class, {len(seeds)} seeds: students")
    print(f"{'':24}{'top-1':>7}{'- off':>44}{'wanted kept':>13}{'strangers kept':>16}{'right':>7}")
    for iteration in (1, 2):
        off: dict[int, NDArray[np.bool_]] = {}
        for cell in _CELLS:
            runs = {seed: _run(work, labels, seed, cell) / f"iteration-{iteration}" for seed in seeds}
            files = {seed: run / "student" / "predictions-test.npz" for seed, run in runs.items()}
            found = {seed: load_predictions(file) for seed, file in files.items()}
            hits = {seed: each.probs.argmax(axis=1) == each.labels for seed, each in found.items()}
            off = off or hits
            top1 = 100 * np.mean([each.mean() for each in hits.values()])
            kept = np.mean([_kept(run) for run in runs.values()], axis=0)
            shares = f"{kept[0]:13.1%}{kept[1]:16.1%}{kept[2]:7.1%}"
            print(f"{f'student {iteration}, {cell}':24}{top1:7.2f}{_difference(hits, off):>44}{shares}")


def _kept(iteration: Path) -> tuple[float, float, float]:
    """Shares of wanted images and of strangers that are kept, and of right labels among the first."""
    selected = pq.read_table(iteration / "selection.parquet").to_pydict()
    manifest = pq.read_table(iteration.parent / "data" / "manifest.parquet").to_pydict()
    rows: dict[str, list[Any]] = defaultdict(list)
    for name, images in zip(manifest["id"], manifest["set"], strict=True):
        if images == "pool":
            rows["junk"].append(name.startswith("junk/"))
            rows["class"].append(name.split("/")[1])
    junk, kept = np.array(rows["junk"]), np.array(selected["repeats"]) > 0
    classes = np.unique(np.array(rows["class"])[~junk])
    right = classes[np.array(selected["label"])] == np.array(rows["class"])
    return kept[~junk].mean(), kept[junk].mean(), right[kept & ~junk].mean()


if __name__ == "__main__":
    main()
