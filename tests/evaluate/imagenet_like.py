"""An untrained network of ImageNet's classes and a few pictures of two of them, for tests of what is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from corruption_reference import noise
from PIL import Image

from noisystudent.config import ModelConfig
from noisystudent.evaluate.subsets import imagenet_classes
from noisystudent.inference import Asked, Predictor, Row, measure
from noisystudent.models.registry import build_model

__all__ = ["CLASSES", "noise", "pictures", "predictor", "told"]

CLASSES = imagenet_classes()


def predictor(side: int = 32, classes: tuple[str, ...] = CLASSES) -> Predictor:
    model = build_model(ModelConfig(name="test_efficientnet"), len(classes), side, seed=1)
    return Predictor(model.eval(), classes, None, torch.device("cpu"))


def pictures(
    folder: Path, classes: tuple[str, ...] = CLASSES[6:8], each: int = 3, size: tuple[int, int] = (40, 40)
) -> Path:
    """`<class>/<number>.png` of (height, width) pixels that tell their classes apart."""
    rng = np.random.default_rng(0)
    for kind, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 128, (*size, 3), dtype=np.uint8) + np.uint8(42 * kind)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def told(model: Predictor, data: object, **asked: object) -> dict[tuple[str, str], Row]:
    """Rows by test and measure."""
    found = measure(model, data, Asked(**asked))  # type: ignore[arg-type]
    return {(row.test, row.measure): row for row in found}
