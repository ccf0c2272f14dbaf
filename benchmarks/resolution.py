"""Train low, test high: does the short second training at a higher resolution help at that resolution?

    python benchmarks/resolution.py
    python benchmarks/resolution.py --seeds 0 1 2 --teacher.train.steps 3000

25 classes of Tiny ImageNet, 64 pixels: trained on random crops scaled to 48 pixels, then finetuned for 1.5
epochs at 64, labelled images as they are, stem and first block frozen. Test top-1 of the first training at 48
pixels, of the same weights at 64, and of the second training at 64: the last two are to be compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

from noisystudent.inference.load import load_predictor
from noisystudent.inference.predict import score
from noisystudent.metrics.paired import paired_over_seeds

_SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
_LOW, _HIGH = 48, 64
_RECIPE = f"""
data: {{resolution: {_HIGH}, plane: resident, val_fraction: 0.05}}
teacher:
  model: {{name: resnet8_32, resolution: {_LOW}, dropout: 0.1, stochastic_depth: 0.1}}
  augment: {{crop: inception, randaugment: null}}
  train: {{steps: 2000, batch_size: 128, lr: 0.2, warmup_epochs: 2, ema_decay: 0.99, precision: bf16}}
  finetune: {{epochs: 1.5, resolution: {_HIGH}, frozen_blocks: 1, lr: 0.1}}
"""


def unpacked(data: Path, work: Path) -> Path:
    for name in ("train", "test"):
        if not (work / name).is_dir():
            with tarfile.open(data / f"{name}.tar.xz") as archive:
                archive.extractall(work, filter="data")
    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--data",
        type=Path,
        default=_SHARED / "tinyimagenet",
        help="folder with train.tar.xz and test.tar.xz, of <set>/<class>/<image>",
    )
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/resolution"))
    arguments, fields = parser.parse_known_args()
    work = unpacked(arguments.data, arguments.work)
    (work / "recipe.yaml").write_text(_RECIPE)
    found: dict[str, list[float]] = {"first at 48": [], "first at 64": [], "second at 64": []}
    for seed in arguments.seeds:
        run = work / f"seed-{seed}"
        command = [sys.executable, "-m", "noisystudent", "run", str(work / "recipe.yaml"), "--students", "0"]
        command += ["--labeled", str(work / "train"), "--test", str(work / "test")]
        subprocess.run([*command, "--seed", str(seed), "--out", str(run), *fields], check=True)
        models = json.loads((run / "iteration-0" / "evaluation.json").read_text())["models"]
        found["first at 48"].append(models["teacher before finetuning"]["test"]["top1"])
        found["second at 64"].append(models["teacher"]["test"]["top1"])
        first = load_predictor(run / "iteration-0" / "teacher" / "model.safetensors", size=_HIGH)
        found["first at 64"].append(score(first, str(work / "test"))[0]["top1"])
    for name, values in found.items():
        print(
            f"{name:14}"
            + "".join(f"{100 * value:8.2f}" for value in values)
            + f"{100 * np.mean(values):8.2f}"
        )
    gains = [
        after - before for after, before in zip(found["second at 64"], found["first at 64"], strict=True)
    ]
    mean, low, high = paired_over_seeds(gains, 0.95) if len(gains) > 1 else (gains[0], np.nan, np.nan)
    print(f"second - first at 64: {100 * mean:+.2f} points, 95% {100 * low:+.2f} to {100 * high:+.2f}")


if __name__ == "__main__":
    main()
