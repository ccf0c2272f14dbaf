"""Features that another run has: copied for the same image, never for another backbone or view."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tiny
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from noisystudent.config import Config, ModelConfig
from noisystudent.data.prepare import open_dataset
from noisystudent.data.sources import open_sources
from noisystudent.embeddings import Features
from noisystudent.inference import embed
from noisystudent.inference.predictor import Predictor
from noisystudent.models import build_model, save_weights
from noisystudent.run.rundir import EmbeddingsDir, RunDir
from noisystudent.self_training import self_train

torch.set_num_threads(1)

SETS = ("labeled", "val", "test", "pool")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "published.safetensors"
    save_weights(build_model(ModelConfig(name="resnet8_16"), 3, tiny.SIDE, seed=7), path)
    return path


def fields(weights: Path | bool) -> dict[str, Any]:
    model = {"pretrained": str(weights) if weights else False}
    train = {"features": True, "lr": 1.0}
    return {"control": "none", "students": 0, "teacher": {"model": model, "train": train}}


def config(images: Path, weights: Path | bool, *others: tuple[str, Any]) -> Config:
    return tiny.config(images, *fields(weights).items(), *others)


@pytest.fixture(scope="module")
def first(images: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Not to be changed: copy it."""
    out = tmp_path_factory.mktemp("first") / "run"
    tiny.run(config(images, weights), out)
    return out


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images in each call of the backbone, without the black one that tells the shape."""
    counts, own = list[int](), embed.embedded_batch

    def counted(backbone: Predictor, given: Tensor) -> Tensor:
        if given.any():
            counts.append(len(given))
        return own(backbone, given)

    monkeypatch.setattr(embed, "embedded_batch", counted)
    return counts


def by_content(given: Config, out: Path) -> dict[bytes, Tensor]:
    """Content hash -> features of all views of an image, in every set of a run."""
    dataset, found = open_dataset(RunDir(out).data, given.data, open_sources(given.data)), {}
    for name in SETS:
        images = getattr(dataset, name)
        features = Features(EmbeddingsDir(out / "embeddings").features(name))
        for row, content in enumerate(images.content_hash):
            views = [features(np.array([row]), view) for view in range(features.layout.views)]
            found[content.tobytes()] = torch.stack(views)
    return found


def other_split(images: Path, folder: Path) -> Path:
    """The same images, of which one label is in the pool, and one image that is new there."""
    shutil.copytree(images, folder)
    (folder / "labeled" / "red" / "00.png").rename(folder / "pool" / "red" / "moved.png")
    shutil.copy(folder / "pool" / "red" / "00.png", folder / "labeled" / "red" / "added.png")
    (folder / "pool" / "red" / "01.png").unlink()
    Image.fromarray(tiny.pictures(0, 1, 99)[0]).save(folder / "pool" / "red" / "new.png")
    return folder


def test_only_new_images_are_computed_whatever_set_and_seed_the_others_have(
    images: Path, weights: Path, first: Path, tmp_path: Path, computed: list[int]
) -> None:
    given = config(other_split(images, tmp_path / "images"), weights, ("seed", 1))
    self_train(given, tmp_path / "run", others=[first])
    assert computed == [1, 1], "the new image and its mirror image"
    tiny.run(given, tmp_path / "alone")
    copied, alone = (by_content(given, tmp_path / name) for name in ("run", "alone"))
    assert copied.keys() == alone.keys()
    for content, features in alone.items():
        torch.testing.assert_close(copied[content], features, rtol=2e-3, atol=1e-4)


class Recorded:
    """Features of all images but the first; counts the batches that are read."""

    def __init__(self) -> None:
        self.read = 0

    def has(self, hashes: NDArray[np.int64]) -> NDArray[np.bool_]:
        return hashes > 0

    def __call__(self, hashes: NDArray[np.int64]) -> Tensor:
        self.read += 1
        return torch.full((2, len(hashes), 4), 7.0)


def test_known_features_are_read_when_they_are_wanted_however_far_decoding_is_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All known features of a large pool do not fit into memory."""

    def computed(*given: Any) -> Iterator[Tensor]:
        for rows in list(given[-1]):  # all requests at once
            yield torch.zeros(2, len(rows), 4)

    monkeypatch.setattr(embed, "_features", computed)
    images: Any = SimpleNamespace(index=SimpleNamespace(take=lambda _, rows: rows))
    known: Any = Recorded()
    batches = list(np.arange(30).reshape(10, 3))
    nothing = cast(Any, None)
    stream = embed._copied_or_computed(nothing, images, nothing, known, iter(batches))
    for number, (rows, values) in enumerate(zip(batches, stream, strict=True), start=1):
        assert known.read == number
        expected = torch.from_numpy(rows > 0).float() * 7
        assert torch.equal(values, expected[None, :, None].expand(2, 3, 4))


def test_given_labels_compute_no_features_again(
    images: Path, weights: Path, first: Path, tmp_path: Path, computed: list[int]
) -> None:
    out, fixes = shutil.copytree(first, tmp_path / "run"), tmp_path / "fixes.csv"
    fixes.write_text("key,label\npool:red/00.png,red\nlabeled:red/00.png,blue\nlabeled:red/01.png,\n")
    given = config(images, weights, ("data.given_labels", str(fixes)))
    tiny.run(given, out)
    assert computed == []
    before, after = by_content(config(images, weights), first), by_content(given, out)
    assert len(after) == len(before) - 1
    assert all(torch.equal(features, before[content]) for content, features in after.items())


def test_ablations_beside_each_other_share_features(
    images: Path, weights: Path, tmp_path: Path, computed: list[int]
) -> None:
    matrix = tmp_path / "study.yaml"
    recipe = tiny.write_recipe(tmp_path / "tiny.yaml")
    cells = {"probe": fields(weights)}
    matrix.write_text(yaml.safe_dump({"recipe": str(recipe), "cells": cells}))
    split = other_split(images, tmp_path / "images")
    assert tiny.call("ablate", matrix, *tiny.flags(images), "--out", tmp_path / "runs" / "a") == 0
    assert sum(computed) > 2
    computed.clear()
    words = (*tiny.flags(split), "--out", tmp_path / "runs" / "b", "--seeds", "1")
    assert tiny.call("ablate", matrix, *words) == 0
    assert computed == [1, 1]


@pytest.mark.parametrize("what", ["damaged", "unfinished", "weights", "views", "drawn views"])
def test_features_of_other_weights_or_views_and_damaged_ones_are_not_copied(
    images: Path, weights: Path, first: Path, tmp_path: Path, computed: list[int], what: str
) -> None:
    other = shutil.copytree(first, tmp_path / "other")
    cache = EmbeddingsDir(other / "embeddings")
    changes: list[tuple[str, Any]] = [("seed", 1)]
    if what == "damaged":
        part = cache.features("pool").part(0)
        part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    elif what == "unfinished":
        (cache.path / "stage.json").unlink()
    elif what == "views":
        changes.append(("teacher.augment.flip", False))
    elif what == "drawn views":
        changes.append(("teacher.augment.views", 1))
    given = config(images, False if what == "weights" else weights, *changes)
    self_train(given, tmp_path / "run", others=[other])
    views = {"views": 1, "drawn views": 3}.get(what, 2)
    assert sum(computed) == views * sum(tiny.PER_CLASS[name] for name in SETS) * len(tiny.CLASSES)


@pytest.fixture(scope="module")
def detailed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose features depend on how they were reduced."""
    folder, rng = tmp_path_factory.mktemp("detailed"), np.random.default_rng(0)
    for name in SETS:
        for color in tiny.CLASSES:
            (folder / name / color).mkdir(parents=True)
            for number in range(6):
                noise = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / name / color / f"{number}.png")
    return folder


@pytest.mark.parametrize("field", [("data.resolution", 32), ("data.plane", "streamed")])
def test_features_of_other_pixels_are_computed(
    detailed: Path, weights: Path, tmp_path: Path, field: tuple[str, Any]
) -> None:
    settings = (("teacher.model.resolution", 32), ("data.resolution", 64), ("data.plane", "resident"))
    before, after = config(detailed, weights, *settings), config(detailed, weights, *settings, field)
    for given in (before, after):
        tiny.run(given, tmp_path / "run")
    tiny.run(after, tmp_path / "fresh")
    changed, fresh = (by_content(after, tmp_path / name) for name in ("run", "fresh"))
    assert all(torch.equal(changed[content], features) for content, features in fresh.items())
    tiny.run(before, tmp_path / "before")
    old = by_content(before, tmp_path / "before")
    assert not all(torch.equal(old[content], features) for content, features in fresh.items())


def test_a_network_above_the_stored_squares_has_the_same_features_on_either_plane(
    detailed: Path, weights: Path, tmp_path: Path
) -> None:
    found = []
    for plane in ("resident", "streamed"):
        sides = (("data.resolution", 16), ("teacher.model.resolution", 40))
        given = config(detailed, weights, *sides, ("data.plane", plane))
        tiny.run(given, tmp_path / plane)
        found.append(by_content(given, tmp_path / plane))
    resident, streamed = found
    assert all(torch.equal(resident[content], features) for content, features in streamed.items())
