"""Images whose like the backbone never saw: the loop on its features does no harm there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from noisystudent.config import Config
from noisystudent.data.sources import ArraySource, Sources
from noisystudent.data.sources.digits import digits
from noisystudent.recipes import resolve
from noisystudent.run.rundir import RunDir
from noisystudent.self_training import self_train

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
SIDE, STUDENTS = 96, 3
SEEDS = (0, 1, 2)


def fashion(seed: int) -> Sources:
    """Five labelled images for each class, a pool of 2,000 and 1,000 test images."""
    images, labels = _idx("train-images-idx3"), _idx("train-labels-idx1")
    order = np.random.default_rng(seed).permutation(len(images))
    chosen = np.concatenate([order[labels[order] == kind][:5] for kind in range(10)])
    rest = order[~np.isin(order, chosen)]

    def source(name: str, rows: NDArray[np.int64]) -> ArraySource:
        return ArraySource(images[rows], [str(label) for label in labels[rows]], name=name)

    pool, test = source("pool", rest[:2_000]), source("test", rest[2_000:3_000])
    return Sources(labeled=source("fashion", chosen), unlabeled=pool, val=None, test=test)


def _idx(name: str) -> NDArray[np.uint8]:
    """An array of the files of MNIST: a header of 4 bytes, the sizes in 4 bytes each, and bytes."""
    content = gzip.decompress((FASHION / f"{name}-ubyte.gz").read_bytes())
    sizes = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


def config(weights: Path, seed: int) -> Config:
    model = {"name": "tf_efficientnet_lite0", "pretrained": str(weights), "remap": "order"}
    train = {"features": True, "steps": 300, "batch_size": 32, "lr": 0.05, "weight_decay": 0.05}
    teacher = {"model": model, "augment": {"flip": False, "mix": 0.5}, "train": train}
    student = {"unlabeled_ratio": 7, "pseudo_label": {"temperature": 0.5}}
    data = {"resolution": SIDE, "workers": 0, "pool_truth": True}
    sections = {"data": data, "teacher": teacher, "student": student, "students": STUDENTS}
    return resolve({"seed": seed, "device": "cpu", "keep_going": True, **sections}, [])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["digits", "fashion"])
def test_the_loop_does_no_harm_on_images_unlike_those_of_the_backbone(
    kind: str, lite0_file: Path, tmp_path: Path
) -> None:
    """The last student is not significantly below its control, over the images of each of three seeds."""
    if kind == "fashion" and not FASHION.is_dir():
        pytest.skip(f"{FASHION} is absent: apt install dataset-fashion-mnist")
    worse = []
    for seed in SEEDS:
        sources = digits(seed) if kind == "digits" else fashion(seed)
        out = tmp_path / str(seed)
        self_train(
            config(lite0_file, seed), out, sources=sources, others=[tmp_path / str(o) for o in range(seed)]
        )
        rows = [json.loads(line) for line in RunDir(out).metrics.read_text().splitlines()]
        scores = {(row["model"], row["iteration"]): row["top1"] for row in rows if row["set"] == "test"}
        control = json.loads(RunDir(out).verdict.read_text())["comparisons"]["control"]
        low, high = 100 * control["low"], 100 * control["high"]
        names = ", ".join(f"{role} {number} {100 * top1:.1f}" for (role, number), top1 in scores.items())
        print(f"{kind}, seed {seed}: {names}; last student - control {low:+.1f} to {high:+.1f}")
        worse += [seed] if high < 0 else []
    assert worse == []
