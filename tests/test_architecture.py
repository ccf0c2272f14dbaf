"""docs/architecture.md names every file, and its examples work."""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from timm.models import register_model
from torch import nn

from noisystudent.config import ModelConfig
from noisystudent.console import Progress
from noisystudent.data.listing import list_items
from noisystudent.data.sources import IMAGE_SUFFIXES, Item
from noisystudent.data.sources.base import digest, file_signature
from noisystudent.metrics.classification import correct
from noisystudent.models import build_model
from noisystudent.models.small import SmallNet
from noisystudent.selection.decisions import REASONS, Decision, Images

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TREE = PAGE[PAGE.index("    noisystudent/") : PAGE.index("## The way of an image")]
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def named_files() -> set[str]:
    """Every path in the tree of the page; indentation says which folder a name is in."""
    folders: list[str] = []
    found = set()
    for line in TREE.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2 - 2
        words = re.findall(r"[\w.]+/|[\w.]+\.py", line.split("  `")[0])
        for word in words:
            if word.endswith("/"):
                folders = [*folders[:depth], word.rstrip("/")]
                break
            found.add("/".join([*folders[:depth], word]))
    return found


def test_the_page_names_every_file_and_no_other() -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "noisystudent").rglob("*.py")}
    assert named_files() == {file for file in files if not file.endswith("__init__.py")}


def test_examples_are_short() -> None:
    assert len(EXAMPLES) == 5
    assert all(sum(map(bool, map(str.strip, example.splitlines()))) < 20 for example in EXAMPLES)


def run(number: int, name: str, **names: Any) -> Any:
    exec(EXAMPLES[number], names)
    return names[name]


def test_the_source_lists_and_reads_images(tmp_path: Path) -> None:
    source_class = run(
        0,
        "ZipSource",
        zipfile=zipfile,
        Path=Path,
        Item=Item,
        IMAGE_SUFFIXES=IMAGE_SUFFIXES,
        digest=digest,
        file_signature=file_signature,
    )
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, format="PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("cat/1.png", "dog/2.png", "dog/readme.txt"):
            archive.writestr(name, data.getvalue())
    source = source_class(tmp_path / "a.zip", labeled=True)
    listing = list_items(source, tmp_path / "listing", Progress())
    assert listing.index.ids(np.arange(2)) == ["cat/1.png", "dog/2.png"] and listing.names == ["cat", "dog"]
    assert source.read(0, 0, -1, "dog/2.png") == data.getvalue()


def test_the_augmentation_is_pillows() -> None:
    grey = run(1, "grey", torch=torch)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    found = grey(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    assert (found[0].numpy() == expected).all()


def test_the_model_is_built_by_its_name() -> None:
    run(2, "linear_patches", register_model=register_model, SmallNet=SmallNet, nn=nn, __name__=__name__)
    model = build_model(ModelConfig(name="linear_patches", dropout=0.1, stochastic_depth=0.0), 3, 16)
    assert model(torch.zeros((2, 3, 16, 16), dtype=torch.uint8)).shape == (2, 3)
    assert timm.is_model("linear_patches")


def test_the_rule_decides() -> None:
    rule = run(3, "Between", dataclass=dataclass, np=np, REASONS=REASONS, Decision=Decision)
    confidence = np.array([0.2, 0.5, 0.9], np.float32)
    images = Images(
        np.arange(3), np.zeros((3, 2), np.uint64), np.zeros(3, np.int32), confidence, confidence < 0
    )
    repeats, reason = rule(0.3, 0.8)(images)
    assert repeats.tolist() == [0, 1, 0] and [REASONS[at] for at in reason][1] == "kept"


def test_the_metric_is_scikit_learns() -> None:
    metric = run(4, "balanced_accuracy", np=np, correct=correct)
    draws = np.random.default_rng(0)
    probs, labels = draws.dirichlet(np.ones(3), 50), draws.integers(0, 3, 50)
    assert metric(probs, labels) == pytest.approx(balanced_accuracy_score(labels, probs.argmax(axis=1)))
