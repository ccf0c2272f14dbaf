"""Small real runs to be attacked: handwritten digits as files of every kind, and recipes of seconds."""

from __future__ import annotations

import copy
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

CLASSES = ("one", "seven", "six")  # in alphabetical order, as the program has them
_DIGITS = {"one": 1, "seven": 7, "six": 6}
PER_CLASS = {"labeled": 8, "val": 10, "test": 10, "pool": 40}
FLAGS = {"labeled": "--labeled", "pool": "--unlabeled", "val": "--val", "test": "--test"}
SIDE = 16


def pictures() -> dict[str, list[tuple[str, bytes]]]:
    """Return {set: [(class, PNG of 16 by 16 pixels)]}; every image differs from all others."""
    from sklearn.datasets import load_digits  # slow, and this module is imported by every session of pytest

    digits = load_digits()
    sets: dict[str, list[tuple[str, bytes]]] = {name: [] for name in PER_CLASS}
    for label in CLASSES:
        images = iter(digits.images[digits.target == _DIGITS[label]])
        for name, count in PER_CLASS.items():
            sets[name] += [(label, _png(next(images))) for _ in range(count)]
    return sets


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.kron(image * 15.9, np.ones((2, 2))).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _numbered(images: list[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    return ((f"{label}/{number:03d}.png", data) for number, (label, data) in enumerate(images))


def write_folder(path: Path, images: list[tuple[str, bytes]]) -> Path:
    """Write `<class>/<number>.png`; returns the folder."""
    for name, data in _numbered(images):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_tar(path: Path, images: list[tuple[str, bytes]]) -> Path:
    """Write a tar of the same files; returns its path."""
    path = path.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        for name, data in _numbered(images):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_parquet(path: Path, images: list[tuple[str, bytes]]) -> Path:
    """Write a Parquet file with the columns `image` and `label`; returns its path."""
    path = path.with_suffix(".parquet")
    labels, data = zip(*images, strict=True)
    pq.write_table(pa.table({"image": list(data), "label": list(labels)}), path, row_group_size=25)
    return path


def write_npz(path: Path, images: list[tuple[str, bytes]]) -> Path:
    """Write an .npz with the arrays `images` and `labels`; returns its path."""
    path = path.with_suffix(".npz")
    labels, data = zip(*images, strict=True)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in data])
    np.savez(path, images=pixels, labels=np.array(labels))
    return path


_LEARNER: dict[str, Any] = {
    "model": {"name": "resnet8_16", "dropout": 0.1, "stochastic_depth": 0.0},
    "augment": {"crop": "none", "flip": False, "randaugment": "rand-m3-n1"},
    "train": {
        "steps": 20, "batch_size": 16, "optimizer": "sgd", "lr": 1.5, "warmup_epochs": 1, "ema_decay": 0.5,
        "checkpoint_steps": 5, "log_steps": 5, "eval_steps": 10,
    },
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "name": "digits",
    "device": "cpu",
    "data": {"resolution": SIDE, "workers": 0, "pool_truth": True},
    "teacher": _LEARNER,
    "student": {
        "unlabeled_ratio": 2,
        "pseudo_label": {"batch_size": 32, "part_size": 48},
        "selection": {"threshold": 0.3},
    },
    "students": 1,
    "evaluate": {"resamples": 200},
}


def _changed(*changes: tuple[str, Any]) -> dict[str, Any]:
    """Return the recipe with other values at places such as "data.workers"."""
    recipe = copy.deepcopy(RECIPE)
    for place, value in changes:
        *parents, last = place.split(".")
        section = recipe
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return recipe


@dataclass(frozen=True)
class Configuration:
    """A run to be attacked: how its images are stored, and its recipe."""

    write: Callable[[Path, list[tuple[str, bytes]]], Path]
    recipe: dict[str, Any]


_STREAMED = (("data.plane", "streamed"), ("data.workers", 2))
_ROBUSTNESS = ("evaluate.corruptions", ("brightness",))
CONFIGURATIONS = {
    "folder": Configuration(write_folder, RECIPE),
    "tar, streamed by workers": Configuration(write_tar, _changed(*_STREAMED)),
    "Parquet, two students, finetuned": Configuration(
        write_parquet, _changed(("students", 2), ("teacher.finetune.steps", 6), ("student.finetune.steps", 6))
    ),
    "arrays, labelled on the fly": Configuration(
        write_npz, _changed(("student.pseudo_label.on_the_fly", True), ("student.init", "teacher"))
    ),
    "cached features, two students": Configuration(
        write_folder, _changed(("teacher.train.features", True), ("teacher.train.lr", 1.0), ("students", 2))
    ),
    "folds, moving average as teacher": Configuration(
        write_parquet,
        _changed(
            ("folds", 3), ("student.pseudo_label.teacher", "ema"), ("student.pseudo_label.ema_adaptive", True)
        ),
    ),
    "two first teachers": Configuration(
        write_tar, _changed(("teachers", [{}, {"model": {"name": "wrn10_1"}}]))
    ),
}


def write(name: str, user: Path) -> tuple[str, ...]:
    """Write the images and the recipe of a configuration; returns the arguments of `run` without --out."""
    configuration = CONFIGURATIONS[name]
    places = {one: configuration.write(user / one, images) for one, images in pictures().items()}
    recipe = user / "digits.yaml"
    recipe.write_text(yaml.safe_dump(configuration.recipe))
    flags = (word for one, flag in FLAGS.items() for word in (flag, str(places[one])))
    return ("run", str(recipe), *flags)
