"""How long before a command answers? Seconds of whole processes.

    python benchmarks/startup.py
    python benchmarks/startup.py --repeats 9

help: `noisystudent --help`. plan: `noisystudent plan` on a finished run, a tiny one that this script makes.
ceiling: a Python that does nothing. peer: a Python that imports torch, what any training tool without lazy
imports does before its help is shown. Every repeat runs all in turn; the first, which warms the disk cache,
is not counted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from decode import ratio, spread
from PIL import Image

_COMMAND = [sys.executable, "-m", "noisystudent"]
_LIMITS = {"help": 0.5, "plan": 2.0}


def finished(work: Path) -> list[str]:
    """The arguments of a run that is done: two classes of noise, a few seconds of training."""
    rng = np.random.default_rng(0)
    for place in ("labeled/dark", "labeled/light", "pool"):
        (work / place).mkdir(parents=True, exist_ok=True)
        for number in range(60):
            low = 128 * (place == "labeled/light" or (place == "pool" and number % 2))
            pixels = rng.integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(work / place / f"{number}.png")
    given = ["tiny.yaml", "--labeled", "labeled", "--unlabeled", "pool", "--out", "run"]
    (work / given[0]).write_text(
        "data: {resolution: 8, val_fraction: 0.3}\n"
        "teacher:\n"
        "  model: {name: resnet8_16, dropout: 0, stochastic_depth: 0}\n"
        "  train: {steps: 60, lr: 0.02}\n"
        "students: 1\n"
    )
    subprocess.run([*_COMMAND, "run", *given], cwd=work, check=True, stdout=subprocess.DEVNULL)
    return given


def measure(calls: dict[str, list[str]], work: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, a figure a repeat."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(1 + repeats):
        for name, call in calls.items():
            begun = time.perf_counter()
            subprocess.run(call, cwd=work, check=True, stdout=subprocess.DEVNULL)
            if repeat > 0:
                found[name].append(time.perf_counter() - begun)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/startup"))
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    calls = {
        "help": [*_COMMAND, "--help"],
        "plan": [*_COMMAND, "plan", *finished(work)],
        "ceiling": [sys.executable, "-c", "pass"],
        "peer": [sys.executable, "-c", "import torch"],
    }
    found = measure(calls, work, arguments.repeats)
    for name, values in found.items():
        limit = f", wanted: under {_LIMITS[name]} s" if name in _LIMITS else ""
        print(f"  {name:10}{spread(values)}{limit}")
    for over, under in (("help", "ceiling"), ("help", "peer"), ("plan", "peer")):
        print(f"  {over} / {under:10}{ratio(found, over, under)}")


if __name__ == "__main__":
    main()
