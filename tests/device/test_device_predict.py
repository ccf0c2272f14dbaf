"""Teachers, labelling, `predict` and attacks on a GPU: one device, and nothing is read too early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from pretend_gpu import Gpu
from pretend_streams import Event, Fault

from noisystudent.config import ModelConfig
from noisystudent.config.pool import PseudoLabelConfig
from noisystudent.inference.predict import label_images, predict
from noisystudent.inference.predictor import Predictor
from noisystudent.models.registry import build_model
from noisystudent.robustness.attacks import RandomStart, fgsm_sweep, pgd

DEVICES = ("cpu", "cuda:0", "cuda:1")


def teacher(device: str, classes: int = 3, **options: Any) -> Predictor:
    """Two networks whose probabilities are averaged."""
    config = ModelConfig(name="resnet8_16", dropout=0.0, stochastic_depth=0.0)
    models = tuple(build_model(config, classes, tiny.SIDE, seed=seed).to(device).eval() for seed in (0, 1))
    names = tuple(map(str, range(classes)))
    return Predictor(
        models=models, classes=names, device=torch.device(device), batch_size=8, workers=0, **options
    )


def batch(device: str, count: int = 8) -> torch.Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, tiny.SIDE, tiny.SIDE), dtype=torch.uint8, generator=draws).to(
        device
    )


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"scales": (1.0, 1.25)}, {"dtype": torch.bfloat16}])
def test_a_teacher_predicts_without_waiting(gpu: Gpu, options: dict[str, Any]) -> None:
    expected = teacher("cpu", **options)(batch("cpu"))
    images, model = batch("cuda"), teacher("cuda:0", **options)
    with gpu.silent():
        logits = model(images)
    assert torch.equal(logits.cpu(), expected)


def test_an_event_of_the_other_gpu_is_seen(gpu: Gpu) -> None:
    probs = teacher("cuda:1")(batch("cuda:1")).to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()  # cuda:0 is current
    event.synchronize()
    with pytest.raises(Fault, match="reads what the default stream of cuda:1 still writes"):
        probs.numpy()
    event.record(torch.cuda.current_stream(torch.device("cuda:1")))
    event.synchronize()
    assert probs.numpy().shape == (8, 3)


def labels(device: str, pool: Path, out: Path, classes: int) -> dict[str, bytes]:
    """Parts of the pseudo-labels of a pool, as they are on disk."""
    config = PseudoLabelConfig(batch_size=8, part_size=16, top_k=5)
    written, _ = label_images(teacher(device, classes), pool, out, config=config)
    return {part.name: part.read_bytes() for part in sorted(written.path.glob("*.parquet"))}


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
@pytest.mark.parametrize("classes", [3, 300])
def test_labels_and_predictions_are_those_of_the_cpu(
    gpu: Gpu, images: Path, tmp_path: Path, device: str, classes: int
) -> None:
    pool = images / "pool"
    expected = labels("cpu", pool, tmp_path / "cpu", classes)
    assert len(expected) > 1
    assert labels(device, pool, tmp_path / "gpu", classes) == expected
    predicted = [predict(teacher(name, classes), images / "val").probs for name in ("cpu", device)]
    assert np.array_equal(predicted[0], predicted[1])


def test_labels_read_too_early_are_seen(
    gpu: Gpu, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Event, "synchronize", lambda event: None)
    with pytest.raises(Fault, match=r"the host \(\w+\) reads what the default stream of cuda:0 still writes"):
        labels("cuda:0", images / "pool", tmp_path / "labels", 3)


def test_attacks_change_the_pixels_as_on_the_cpu(gpu: Gpu) -> None:
    attacked = []
    for device in ("cpu", "cuda:0"):
        model, images = teacher(device).model, batch(device)
        labels = torch.arange(8, device=device) % 3
        attacked.append(
            [
                *fgsm_sweep(model, images, labels),
                pgd(model, images, labels, 8.0, 2, random_start=RandomStart(0, range(8))),
            ]
        )
    assert all(torch.equal(left, right.cpu()) for left, right in zip(*attacked, strict=True))
