"""What does the order of a pool that is read in windows cost a student in accuracy?

    python benchmarks/pool_window.py --seeds 0 1 2

CIFAR-10 with 1,000 labels, as benchmarks/cifar10.py lays it out: the pool is folders of classes, so
neighbours in it are of one class. This is the worst order that a pool can have; shards of shuffled images
lose nothing. Recipe cifar10-cpu with fewer steps. Cells, which share a teacher: all images shuffled, and
`student.pool_window` of each size. Printed is ablation.csv: the student's top-1 on 10,000 test images, and
the mean paired difference to all images shuffled with its 95 % interval, over test images and over seeds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import yaml
from cifar10 import add_sources, lay_out

_LABELS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, nargs="+", default=[512, 4096, 16384])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--teacher-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000, help="of the student")
    add_sources(parser)
    arguments = parser.parse_args()
    layout = lay_out(arguments.data, arguments.junk, arguments.work, _LABELS, None)
    cells: dict[str, dict[str, object]] = {"shuffled": {}} | {
        f"window-{window}": {"student": {"pool_window": window}} for window in arguments.windows
    }
    common = {
        "teacher": {"train": {"steps": arguments.teacher_steps}},
        "student": {"train": {"steps": arguments.steps}},
        "evaluate": {"tests": []},
        "control": "none",
    }
    matrix = {"recipe": "cifar10-cpu", "base": "shuffled", "common": common, "cells": cells}
    file = arguments.work / "pool-window.yaml"
    file.write_text(yaml.safe_dump(matrix))
    out = arguments.work / "runs" / "pool-window"
    command = [sys.executable, "-m", "noisystudent", "ablate", str(file), "--out", str(out)]
    command += ["--labeled", str(layout / "labeled"), "--unlabeled", str(layout / "pool" / "real")]
    command += ["--test", str(layout / "test"), "--seeds", *map(str, arguments.seeds)]
    subprocess.run(command, check=True)
    print((out / "ablation.csv").read_text())


if __name__ == "__main__":
    main()
