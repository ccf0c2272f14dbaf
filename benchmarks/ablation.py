"""An ablation on CIFAR-10 with few labels; `ablate` with the folders that benchmarks/cifar10.py lays out.

    python benchmarks/ablation.py ablation-judgements
    python benchmarks/ablation.py ablation-noise --seeds 0 1 2 --processes 2 --student.train.steps 2500

Other arguments go to `noisystudent ablate` as they are. Rivals that learn from tags see the pool in folders,
four in ten of a wrong class; all labels, for the gap that is closed, are those of labels and pool.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from cifar10 import add_sources, lay_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ablation")
    parser.add_argument("--labels", type=int, default=1000, help="labelled images, balanced over the classes")
    add_sources(parser)
    arguments, others = parser.parse_known_args()
    layout = lay_out(arguments.data, arguments.junk, arguments.work, arguments.labels, None)
    pool = "tagged" if arguments.ablation == "ablation-rivals" else "pool"
    command = [sys.executable, "-m", "noisystudent", "ablate", arguments.ablation]
    command += ["--labeled", str(layout / "labeled"), "--unlabeled", str(layout / pool)]
    command += ["--test", str(layout / "test"), "--all-labels", str(layout / "all")]
    command += ["--out", str(arguments.work / "runs" / f"{arguments.ablation}-{arguments.labels}"), *others]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
