"""The page from an empty environment on: each line works, and onnxruntime alone predicts as we do."""

from __future__ import annotations

import csv
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "transcript.md").read_text(encoding="utf-8")
IMAGES = ROOT / ".." / "shared" / "data" / "tinyimagenet"
CLASSES = {
    "spider": "n01774750",
    "koala": "n01882714",
    "coral": "n01917289",
    "snail": "n01944390",
    "slug": "n01950731",
}


@pytest.fixture
def folder(lite0_file: Path, tmp_path: Path) -> Path:
    """A folder as that of the page: photographs, weights, and the script at its end."""
    if not IMAGES.is_dir():
        pytest.skip(f"{IMAGES} is absent")
    for name in ("train", "test", "other-classes"):
        with tarfile.open(IMAGES / f"{name}.tar.xz") as tar:
            tar.extractall(tmp_path / "unpacked", filter="data")
    photos = tmp_path / "photos"
    for name, folder in CLASSES.items():
        images = sorted((tmp_path / "unpacked" / "train" / folder).iterdir())
        random.Random(folder).shuffle(images)
        move(images[:40], photos / "labeled" / name)
        move(images[40:200], photos / "pool")
        move(sorted((tmp_path / "unpacked" / "test" / folder).iterdir()), photos / "test" / name)
    move(sorted((tmp_path / "unpacked" / "pool").iterdir())[:200], photos / "pool")
    shutil.copy(lite0_file, tmp_path / "lite0.pth")
    script = re.search(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert script is not None
    (tmp_path / "own.py").write_text(script[1], encoding="utf-8")
    return tmp_path


def move(images: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        image.rename(folder / image.name)


def test_every_line_works(folder: Path) -> None:
    lines = re.findall(r"^    \$ (.+?)(?<!\\)$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(lines) == 9
    environment = os.environ | {
        "SOURCE": str(ROOT),
        "PATH": f"{folder / 'env' / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)  # what is used is what was installed
    printed = []
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (line, done.stderr[-2000:])
        printed.append(done.stdout)
        print(f"$ {line}\n{done.stdout}{done.stderr}")
    assert (folder / "runs" / "mine" / "report.html").stat().st_size < 8e6
    with (folder / "predictions.csv").open(encoding="utf-8") as file:
        expected = {Path(row["id"]).name: row["class"] for row in csv.DictReader(file)}
    own = {Path(line.split()[0]).name: line.split()[1] for line in printed[-1].splitlines()}
    assert len(own) == 125 and own == expected
