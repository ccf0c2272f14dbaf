"""A new user's folder, trained from scratch: is the last student ever worse than its control?

    python benchmarks/folder.py --classes 6 --labels 20 --side 32 --draws 0 1 2 3 4 5 6 7 8 9
    python benchmarks/folder.py --classes 25 --labels 20 50 --side 64 --draws 0 1 2

Each draw is a split of Tiny ImageNet: some of its classes, the labelled images, and a pool of 250 images a
class and 50 strangers a class. All other images of the classes are the test set. The cells of the matrix
ablation-folder run on each draw, with its number as seed. Choices were made on draws from 100 on. `worse` and
`better` count the draws whose verdict shows that the student is worse or better than its control.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cifar10 import _SHARED, _link
from pretrained import unpack

from noisystudent.metrics.paired import above, below, paired_over_seeds

_RESERVED, _POOL, _STRANGERS = 50, 250, 50  # images a class; the first ones may be labelled
_LEVEL = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=6)
    parser.add_argument("--labels", type=int, nargs="+", default=[20], help="labelled images a class")
    parser.add_argument("--side", type=int, default=64, help="pixels of the images in training")
    parser.add_argument("--draws", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--data", type=Path, default=_SHARED / "tinyimagenet")
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/folder"))
    arguments, others = parser.parse_known_args()
    work = arguments.work.absolute()
    unpack(arguments.data, work)
    for labels in arguments.labels:
        outs = []
        for draw in arguments.draws:
            split = lay_out(work, arguments.classes, labels, draw)
            outs.append(work / "runs" / f"{split.name}-side-{arguments.side}")
            run(split, outs[-1], draw, ["--data.resolution", str(arguments.side), *others])
        show(outs, f"{arguments.classes} classes, {labels} labels each, {arguments.side} pixels")


def lay_out(work: Path, classes: int, labels: int, draw: int) -> Path:
    """Folders of one draw, made once. The labels of a larger number contain those of a smaller one."""
    target, unpacked = work / f"classes-{classes}-labels-{labels}-draw-{draw}", work / "unpacked"
    if (target / "done").exists():
        return target
    rng = random.Random(draw)
    for folder in sorted(rng.sample(sorted((unpacked / "train").iterdir()), classes)):
        images = sorted(folder.iterdir())
        rng.shuffle(images)
        rest = images[_RESERVED + _POOL :] + sorted((unpacked / "test" / folder.name).iterdir())
        for part, chosen in (("labeled", images[:labels]), ("test", rest)):
            for image in chosen:
                _link(image, target / part / folder.name / image.name)
        for image in images[_RESERVED : _RESERVED + _POOL]:
            _link(image, target / "pool" / image.name)
    for image in rng.sample(sorted((unpacked / "pool").iterdir()), _STRANGERS * classes):
        _link(image, target / "pool" / image.name)
    (target / "done").touch()
    return target


def run(split: Path, out: Path, draw: int, others: list[str]) -> None:
    command = [sys.executable, "-m", "noisystudent", "ablate", "ablation-folder", "--out", str(out)]
    command += ["--labeled", str(split / "labeled"), "--unlabeled", str(split / "pool")]
    command += ["--test", str(split / "test"), "--seeds", str(draw), *others]
    subprocess.run(command, check=False)  # a failed cell is a missing draw in its row


def show(outs: list[Path], title: str) -> None:
    verdicts: dict[str, list[dict[str, Any]]] = {}
    for out in outs:
        for file in sorted(out.glob("*/seed-*/verdict.json")):
            verdicts.setdefault(file.parts[-3], []).append(json.loads(file.read_text()))
    print(f"\n{title}\n{'':52}draws  teacher  control  student  - control, 95 % over draws   worse  better")
    for name, found in verdicts.items():
        models = [100 * np.mean([one["top1"][m] for one in found]) for m in ("teacher", "control", "student")]
        rivals = [one["comparisons"]["control"] for one in found]
        differences = [100 * rival["difference"] for rival in rivals]
        between = ""
        if len(differences) > 1:
            _, low, high = paired_over_seeds(differences, _LEVEL)
            between = f"({low:+.2f} to {high:+.2f})"
        worse, better = (sum(side(rival, _LEVEL) for rival in rivals) for side in (below, above))
        cells = "".join(f"{value:9.2f}" for value in models)
        print(f"{name:52}{len(found):5}{cells}  {np.mean(differences):+.2f} {between:18}{worse:10}{better:8}")


if __name__ == "__main__":
    main()
