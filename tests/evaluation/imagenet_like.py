"""An untrained network of ImageNet's classes and a few images of two of them, for tests of rows and notes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from corruption_reference import noise
from PIL import Image

from noisystudent.config import ModelConfig
from noisystudent.evaluation.measure import measure
from noisystudent.evaluation.options import Options
from noisystudent.evaluation.rows import Row
from noisystudent.inference.predictor import Predictor
from noisystudent.models.registry import build_model
from noisystudent.robustness.imagenet import imagenet_classes

__all__ = ["CLASSES", "measured", "noise", "predictor", "write_images"]

CLASSES = imagenet_classes()


def predictor(side: int = 32, classes: tuple[str, ...] = CLASSES) -> Predictor:
    model = build_model(ModelConfig(name="test_efficientnet"), len(classes), side, seed=1)
    return Predictor(models=(model.eval(),), classes=classes, device=torch.device("cpu"))


def write_images(
    folder: Path, classes: tuple[str, ...] = CLASSES[6:8], each: int = 3, size: tuple[int, int] = (40, 40)
) -> Path:
    """`<class>/<number>.png` of (height, width) pixels that differ from class to class."""
    rng = np.random.default_rng(0)
    for kind, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 128, (*size, 3), dtype=np.uint8) + np.uint8(42 * kind)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def measured(model: Predictor, data: object, **options: object) -> dict[tuple[str, str], Row]:
    """Rows by test and measure."""
    found = measure(model, data, Options(**options))  # type: ignore[arg-type]
    return {(row.test, row.measure): row for row in found}
