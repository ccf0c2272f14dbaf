"""A run on real photographs: eight classes of Tiny ImageNet, and junk from other classes in the pool."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import tiny
import yaml

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "tinyimagenet"
CLASSES = {
    "n01774750": "tarantula",
    "n01882714": "koala",
    "n02206856": "bee",
    "n02480495": "orangutan",
    "n03444034": "go-kart",
    "n03447447": "gondola",
    "n04133789": "sandal",
    "n04487081": "trolleybus",
}
# Numbers of the images of each class, and of each of the other classes.
SHARES = {"labeled": range(30), "val": range(30, 42), "pool": range(42, 122)}
JUNK = range(2)
_TRAIN = {
    "steps": 40,
    "batch_size": 32,
    "optimizer": "sgd",
    "lr": 1.0,
    "warmup_epochs": 1,
    "ema_decay": 0.9,
    "eval_steps": 8,
    "log_steps": 4,
}
RECIPE: dict[str, Any] = {
    "name": "photographs",
    "device": "cpu",
    "data": {"resolution": 32, "workers": 0, "pool_truth": True},
    "teacher": {
        "model": {"name": "resnet8_16", "dropout": 0.1},
        "augment": {"crop": "pad", "flip": True, "randaugment": "rand-m5-n1"},
        "train": _TRAIN,
    },
    "student": {"unlabeled_ratio": 2, "selection": {"threshold": 0.3}},
    "students": 2,
    "evaluate": {
        "resamples": 1000,
        "tests": ["c", "p", "fgsm", "calibration"],
        "severities": [1, 3, 5],
        "sample": 16,
    },
}


def write_run(root: Path) -> Path:
    """Make the images and the run below `root`. The pool also has a copy from test and a broken file."""
    images = root / "images"
    for name in ("train", "test", "other-classes"):
        with tarfile.open(DATA / f"{name}.tar.xz") as archive:
            for member in archive:
                target = _target(name, member)
                if target is not None and (file := archive.extractfile(member)) is not None:
                    (images / target).parent.mkdir(parents=True, exist_ok=True)
                    (images / target).write_bytes(file.read())
    copied = min((images / "test" / "koala").iterdir())
    (images / "pool" / "copy.jpg").write_bytes(copied.read_bytes())
    (images / "pool" / "broken.jpg").write_bytes(copied.read_bytes()[:300])
    recipe, out = root / "photographs.yaml", root / "run"
    recipe.write_text(yaml.safe_dump(RECIPE))
    assert tiny.call("run", recipe, *tiny.flags(images), "--out", out) == 0
    return out


def _target(archive: str, member: tarfile.TarInfo) -> Path | None:
    """Place of a member below the folder of the images; None: it is left out."""
    path = Path(member.name)
    if archive == "other-classes":
        return Path("pool", "junk", path.name) if member.isfile() and _number(path) in JUNK else None
    if not member.isfile() or path.parent.name not in CLASSES:
        return None
    label = CLASSES[path.parent.name]
    if archive == "test":
        return Path("test", label, path.name)
    number = _number(path)
    return next((Path(name, label, path.name) for name, numbers in SHARES.items() if number in numbers), None)


def _number(path: Path) -> int:
    """Number of an image in its class: 17 for n01774750_17.JPEG."""
    return int(path.stem.rpartition("_")[2])
