"""A whole run in a second: three colours to tell apart, a pool of forty, a network of 16 channels."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from noisystudent import self_training
from noisystudent.__main__ import main as process
from noisystudent.cli import main
from noisystudent.config import Config
from noisystudent.console import Progress
from noisystudent.data.loader import SelectedPool
from noisystudent.data.prepare import Dataset, open_dataset
from noisystudent.data.sources import open_sources
from noisystudent.recipes import resolve
from noisystudent.run.estimate import RunPlan
from noisystudent.run.fingerprint import ListingFingerprint
from noisystudent.run.rundir import ModelDir, RunDir
from noisystudent.self_training import planning
from noisystudent.self_training.training import Training

Capture = pytest.CaptureFixture[str]

SIDE = 16
CLASSES = ("blue", "green", "red")
SETS = {"labeled": "labeled", "unlabeled": "pool", "val": "val", "test": "test"}  # field or flag: folder
PER_CLASS = {"labeled": 6, "val": 4, "test": 4, "pool": 14}
LISTING = ListingFingerprint("labeled", "pool")  # of some images, for graphs that no run follows

_LEARNER = {
    "model": {"name": "resnet8_16", "dropout": 0.1, "stochastic_depth": 0.1},
    "augment": {"crop": "pad", "flip": True, "randaugment": "rand-m3-n1"},
    "train": {
        "steps": 12,
        "batch_size": 6,
        "optimizer": "sgd",
        "lr": 4.0,
        "warmup_epochs": 1,
        "ema_decay": 0.8,
        "checkpoint_steps": 5,
        "log_steps": 5,
        "eval_steps": 10,
    },
}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "device": "cpu",
    "data": {"resolution": SIDE, "workers": 0, "pool_truth": True},
    "teacher": _LEARNER,
    "student": {
        "unlabeled_ratio": 2,
        "pseudo_label": {"batch_size": 8, "part_size": 16},
        "selection": {"threshold": 0.3},
    },
    "students": 1,
    "evaluate": {"resamples": 200},
}


def pictures(kind: int, count: int, seed: int) -> NDArray[np.uint8]:
    """(count, 16, 16, 3): noise around a colour, near enough to the others to leave some doubt."""
    rng = np.random.default_rng([seed, kind])
    colour = np.full(3, 80.0)
    colour[2 - kind] = 170.0
    images = rng.normal(colour, 45.0, (count, SIDE, SIDE, 3)) + rng.normal(0, 20.0, (count, 1, 1, 3))
    return np.clip(images, 0, 255).astype(np.uint8)


def write_images(root: Path) -> Path:
    """`<set>/<class>/<number>.png` below `root` for labeled, val, test and pool."""
    for seed, (name, count) in enumerate(PER_CLASS.items()):
        for kind, label in enumerate(CLASSES):
            folder = root / name / label
            folder.mkdir(parents=True)
            for number, pixels in enumerate(pictures(kind, count, seed)):
                Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return root


def config(images: Path, *overrides: tuple[str, Any]) -> Config:
    """The tiny recipe on `write_images(images)`."""
    given = [(f"data.{field}", str(images / name)) for field, name in SETS.items()]
    return resolve(RECIPE, [*given, *overrides])


def flags(images: Path) -> list[object]:
    """The same sets as flags of the command line."""
    return [word for flag, name in SETS.items() for word in (f"--{flag}", images / name)]


class Remembered(Progress):
    """Progress that keeps its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class Counted(Progress):
    """Progress that keeps its advances."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int, int]] = []

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        self.calls.append((task, done, total))


def run(given: Config, out: Path) -> list[str]:
    """Run it all in this process; returns the lines it printed."""
    progress = Remembered()
    self_training.self_train(given, out, progress=progress)
    return progress.lines


def call(*tokens: object) -> int:
    """The command line in this process; returns the exit code."""
    try:
        main([str(token) for token in tokens])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights(out: Path, model: str) -> str:
    """Digest of the tensors of `iteration-1/student` and the like; the file also has words, in any order."""
    tensors = load_file(out / model / "model.safetensors")
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `plan` print the states of the stages alone; to measure their time takes seconds."""
    monkeypatch.setattr(planning, "plan", lambda config, *_, **__: (config, RunPlan(stages=())))


def write_recipe(path: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    recipe = yaml.safe_load(yaml.safe_dump(RECIPE))
    if change is not None:
        change(recipe)
    path.write_text(yaml.safe_dump(recipe))
    return path


def one_line(capsys: Capture) -> str:
    """What stands on standard error: one line that begins with the program's name."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("noisystudent: ")
    return lines[0]


def output(capsys: Capture, *words: object) -> str:
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert call(*words) == 0
    return capsys.readouterr().out


def table(text: str) -> dict[str, str]:
    """First word of each line to the rest of it."""
    rows = (line.split(maxsplit=1) for line in text.splitlines()[1:])
    return {row[0]: " ".join(row[1].split()) for row in rows}


def refused(capsys: Capture, code: int, *words: object) -> str:
    """Call it, expect the exit code and one line on standard error, and return the line."""
    assert call(*words) == code
    return one_line(capsys)


def move(root: Path, source: str, target: str) -> None:
    (root / target).parent.mkdir(exist_ok=True)
    (root / source).rename(root / target)


def child(tokens: Sequence[object], log: Path, largest_file: int | None = None) -> None:
    """The command line in a process of its own; its output goes to `log`, files grow to a limit (bytes)."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    torch.set_num_threads(1)
    process([str(token) for token in tokens])


def manifest(out: Path) -> list[dict[str, Any]]:
    """A row an image in use."""
    rows: list[dict[str, Any]] = pq.read_table(out / "data" / "manifest.parquet").to_pylist()
    return rows


def opened(images: Path, out: Path) -> tuple[Config, Dataset]:
    """What a finished run was of."""
    asked = config(images)
    return asked, open_dataset(RunDir(out).data, asked.data, open_sources(asked.data))


def training(asked: Config, dataset: Dataset, folder: Path, **augment: Any) -> Training:
    """The student of a run, on every image of the pool, with the given differences in its input noise."""
    student = asked.students[0]
    rows = np.arange(len(dataset.pool))
    soft = np.eye(len(dataset.classes), dtype=np.float32)[rows % len(dataset.classes)]
    pool = SelectedPool(rows, np.ones(len(rows), np.int32), lambda at: soft[at])
    return Training(
        learner=dataclasses.replace(student, augment=dataclasses.replace(student.augment, **augment)),
        dataset=dataset,
        folder=ModelDir(folder),
        seed=3,
        resolution=SIDE,
        device=torch.device("cpu"),
        workers=0,
        read_pool=lambda: pool,
        ratios=student.unlabeled_ratio,
    )
