"""Features of images in a folder: those of the network's own views, computed once for identical images."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch

from noisystudent.config import AugmentConfig, ModelConfig
from noisystudent.data.imageset import ImageSet
from noisystudent.embeddings import Features
from noisystudent.errors import InputError
from noisystudent.inference.embed import embed
from noisystudent.inference.images import open_images, scanned
from noisystudent.inference.predict import label_images
from noisystudent.inference.predictor import Predictor
from noisystudent.models import Classifier, build_model
from noisystudent.run.rundir import PartsDir

CPU = torch.device("cpu")
NOISE = {
    "pad": AugmentConfig(crop="pad", flip=True, views=2),
    "inception": AugmentConfig(crop="inception", flip=False, views=2),
}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    config = ModelConfig(name="resnet8_16", dropout=0.0, stochastic_depth=0.0)
    model = build_model(config, 3, tiny.SIDE, seed=2).eval()
    return Predictor(models=(model,), classes=tiny.CLASSES, device=CPU, batch_size=8, workers=0)


def stored(folder: Path) -> np.ndarray:
    return np.concatenate([np.load(part) for part in PartsDir(folder).parts()], axis=1)


def test_the_features_are_those_of_clean_views(images: Path, tmp_path: Path, predictor: Predictor) -> None:
    features, bad = embed(predictor, images / "pool", tmp_path / "out")
    assert bad == [] and features.layout.views == 2
    names = pq.read_table(PartsDir(tmp_path / "out").images).to_pylist()
    assert isinstance(predictor.model, Classifier)
    with scanned(open_images(images / "pool", False), None, tiny.Remembered(), stored=16) as (pool, _):
        assert isinstance(pool, ImageSet)
        rows = np.arange(len(pool))
        assert [row["id"] for row in names] == pool.ids(rows)
        assert [row["content_hash"] for row in names] == [one.tobytes() for one in pool.content_hash]
        with torch.inference_mode():
            expected = predictor.model.features(pool.fetch(rows, tiny.SIDE))
    assert torch.allclose(features(rows), expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE.keys())
def test_identical_images_have_identical_views(
    given: Path, tmp_path: Path, predictor: Predictor, noise: AugmentConfig
) -> None:
    pool = given / "pool"
    shutil.copy(pool / "blue" / "03.png", pool / "red" / "99.png")
    embed(predictor, pool, tmp_path / "out", augment=noise)
    values, names = stored(tmp_path / "out"), pq.read_table(tmp_path / "out" / "images.parquet")["id"]
    first, copy = (names.to_pylist().index(name) for name in ("blue/03.png", "red/99.png"))
    assert (values[:, first] == values[:, copy]).all()
    drawn = values[1 + noise.flip :, first]
    assert not (drawn[0] == drawn[1]).all() and not (drawn[0] == values[0, first]).all()


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE.keys())
def test_a_view_is_a_function_of_seed_and_row(
    images: Path, tmp_path: Path, predictor: Predictor, noise: AugmentConfig
) -> None:
    """A second folder after the first one changes no row of the first one."""
    embed(predictor, images / "pool" / "blue", tmp_path / "one", augment=noise, seed=3)
    embed(predictor, images / "pool", tmp_path / "all", augment=noise, seed=3)
    embed(predictor, images / "pool" / "blue", tmp_path / "other", augment=noise, seed=4)
    one, both, other = (stored(tmp_path / name) for name in ("one", "all", "other"))
    assert np.allclose(one.astype(np.float32), both[:, :14].astype(np.float32), rtol=2e-3, atol=1e-4)
    clean = 1 + noise.flip
    assert (one[:clean] == other[:clean]).all() and not (one[clean:] == other[clean:]).all()


def test_a_second_call_keeps_the_parts_and_other_settings_are_refused(
    images: Path, tmp_path: Path, predictor: Predictor
) -> None:
    embed(predictor, images / "val", tmp_path / "out")
    part = PartsDir(tmp_path / "out").part(0)
    before = part.stat().st_mtime_ns
    embed(predictor, images / "val", tmp_path / "out")
    assert part.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="features of another model or of other views"):
        embed(predictor, images / "val", tmp_path / "out", augment=AugmentConfig(flip=False))
    PartsDir(tmp_path / "out").index.unlink()
    with pytest.raises(InputError, match=r"no readable parts\.json"):
        embed(predictor, images / "val", tmp_path / "out")


def test_weights_without_a_file_are_known_by_their_content(
    images: Path, tmp_path: Path, predictor: Predictor
) -> None:
    """Another version of timm may publish other weights under the same name."""
    config = ModelConfig(name="resnet8_16", dropout=0.0, stochastic_depth=0.0)
    other = replace(predictor, models=(build_model(config, 3, tiny.SIDE, seed=3).eval(),))
    embed(predictor, images / "val", tmp_path / "features")
    with pytest.raises(InputError, match="holds features of another model"):
        embed(other, images / "val", tmp_path / "features")
    label_images(predictor, images / "val", tmp_path / "labels")
    with pytest.raises(InputError, match="holds the labels of another model"):
        label_images(other, images / "val", tmp_path / "labels")


def test_the_command_writes_what_the_function_writes(
    images: Path, tmp_path: Path, finished: Path, capsys: tiny.Capture
) -> None:
    words = ("embed", finished, "--images", images / "val", "--out", tmp_path / "out", "--device", "cpu")
    text = tiny.output(capsys, *words, "--augment.views", 1)
    assert "features of 12 images, 3 views of each: " in text
    assert Features(PartsDir(tmp_path / "out")).layout.width == 64
    line = tiny.refused(capsys, 2, *words)
    assert "holds features of another model or of other views" in line


def test_a_model_without_features_is_named(images: Path, tmp_path: Path, predictor: Predictor) -> None:
    onnx = Predictor(models=(object(),), classes=(), device=CPU, path=Path("a.onnx"), side=16)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"a\.onnx has no features; give a run"):
        embed(onnx, images / "val", tmp_path / "out")


@pytest.mark.parametrize(
    "augment, message",
    [
        (AugmentConfig(mix=0.3), "augment.mix is 0.3, but it applies only to the training of a head"),
        (AugmentConfig(views=2, pool=False), "augment.pool is False, but it applies only to the training"),
        (AugmentConfig(randaugment=None), "augment.randaugment is None, but augment.views is 0, so no view"),
    ],
)
def test_an_option_that_no_view_depends_on_is_refused(
    images: Path, tmp_path: Path, predictor: Predictor, augment: AugmentConfig, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        embed(predictor, images / "val", tmp_path / "out", augment=augment)
    assert not (tmp_path / "out").exists()
