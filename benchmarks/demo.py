"""The demo over several seeds: does the last student beat teacher and control, beyond the luck of a seed?

python benchmarks/demo.py --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from table import show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/demo"))
    arguments, fields = parser.parse_known_args()
    rows = []
    for seed in arguments.seeds:
        run = arguments.work / f"seed-{seed}"
        started = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "noisystudent",
            "demo",
            "--out",
            str(run),
            "--seed",
            str(seed),
            *fields,
        ]
        subprocess.run(command, check=True)
        rows.append({"seed": seed, "seconds": time.perf_counter() - started, **test_scores(run)})
    show(rows)


def test_scores(run: Path) -> dict[str, object]:
    """Test top-1 of every model of a run, and its verdict."""
    found: dict[str, object] = {"verdict": json.loads((run / "verdict.json").read_text())["sentence"]}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["set"] == "test":
            found[f"{row['model']}-{row['iteration']}"] = row["top1"]
    return found


if __name__ == "__main__":
    main()
