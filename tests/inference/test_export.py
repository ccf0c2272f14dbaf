"""timm alone loads an exported file by the printed line, and predicts the same from the same photographs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import timm
import tiny
import torch
from PIL import Image
from timm.data import resolve_data_config, resolve_model_data_config
from tiny import Capture, output, refused
from torch.torch_version import TorchVersion

from noisystudent.config import ModelConfig
from noisystudent.inference import load
from noisystudent.inference.content import Content
from noisystudent.inference.export import export
from noisystudent.inference.load import load_predictor
from noisystudent.inference.predict import predict
from noisystudent.inference.predictor import Predictor
from noisystudent.models import build_model, save_weights

CLASSES = ("blue", "green", "red é")
PREDICT = """
import sys, numpy, pathlib, torch
from PIL import Image
images = [transform(Image.open(path).convert("RGB")) for path in sys.argv[2:]]
with torch.inference_mode():
    numpy.save(sys.argv[1], torch.cat([model(image[None]) for image in images]).softmax(1).numpy())
print(model.pretrained_cfg["label_names"])
"""


def photographs(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    """Smooth colour images with some noise, of (width, height)."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path)
    return paths


def in_another_process(line: str, files: list[Path], folder: Path) -> tuple[np.ndarray, str]:
    """Run the printed line in a fresh Python: probabilities (N, K) by timm's transform, and class names."""
    command = [sys.executable, "-c", f"{line}\n{PREDICT}", folder / "probs.npy", *files]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return np.load(folder / "probs.npy"), result.stdout.strip()


@pytest.mark.parametrize(
    "name, side, sizes, tolerance",
    [
        ("resnet8_16", 32, [(32, 32)] * 4, 1e-3),  # the same pixels
        ("test_efficientnet", 64, [(64, 64)] * 4, 1e-3),
        ("test_vit", 160, [(200, 200), (300, 300)], 0.02),  # Pillow and torch differ by a grey level
        ("test_efficientnet", 256, [(288, 288), (500, 375), (400, 640)], 0.02),  # borders by half a pixel
    ],
    ids=["own", "exact", "transformer", "photographs"],
)
def test_timm_predicts_the_same(
    tmp_path: Path, name: str, side: int, sizes: list[tuple[int, int]], tolerance: float
) -> None:
    """The tolerance is a share of the spread between the images."""
    model = build_model(ModelConfig(name=name, stochastic_depth=0.0), 3, side, seed=1)
    net: Any = model.net
    with torch.no_grad():
        # Random weights of timm's networks hardly tell images apart.
        net.get_classifier().weight.mul_(2 if name == "resnet8_16" else 30)
    save_weights(model, tmp_path / "model.safetensors", CLASSES)
    line = export(tmp_path / "model.safetensors", tmp_path / "exported.safetensors").line
    files = photographs(tmp_path / "photographs", sizes)
    probs, names = in_another_process(line, files, tmp_path)
    assert names == str(list(CLASSES))
    predictor = load_predictor(tmp_path / "model.safetensors", "cpu")
    expected = np.concatenate([predict(predictor, [file]).probs for file in files])
    spread = float(np.ptp(expected, axis=0).max())
    assert spread > 0.01
    np.testing.assert_allclose(probs, expected, rtol=0, atol=tolerance * spread)


def test_the_line_of_a_run(finished: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    line = output(capsys, "export", finished, "--out", tmp_path / "student.safetensors").strip()
    assert "\n" not in line and "noisystudent.models" in line
    files = sorted((images / "test").rglob("*.png"))
    probs, names = in_another_process(line, files, tmp_path)
    assert names == str(list(tiny.CLASSES))
    np.testing.assert_allclose(probs, predict(load_predictor(finished, "cpu"), files).probs, atol=1e-6)
    again = load_predictor(tmp_path / "student.safetensors", "cpu")
    assert again.classes == tiny.CLASSES


def test_onnx_with_an_old_torch_is_refused_in_one_line(
    finished: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0+cpu"))
    line = refused(capsys, 2, "export", finished, "--out", tmp_path / "student.onnx")
    assert "student.onnx, which needs torch 2.11 or newer, and 2.6.0+cpu is installed" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".SAFETENSORS", ".PT2"])
def test_an_ending_in_capital_letters_is_refused(
    finished: Path, tmp_path: Path, capsys: Capture, ending: str
) -> None:
    """timm and torch load files by their endings in small letters."""
    line = refused(capsys, 2, "export", finished, "--out", tmp_path / f"student{ending}")
    assert line.endswith(f"student{ending}; the file must end in {ending.lower()}, in small letters")


def test_the_file_holds_the_configuration_of_timm(tmp_path: Path) -> None:
    for side, crop in ((32, 1.0), (224, 0.875), (462, 462 / 494)):
        model = build_model(ModelConfig(name="test_resnet"), 3, side)
        save_weights(model, tmp_path / "model.safetensors", CLASSES)
        export(tmp_path / "model.safetensors", tmp_path / "exported.safetensors", overwrite=True)
        with safetensors.safe_open(tmp_path / "exported.safetensors", "pt") as file:
            cfg = json.loads(file.metadata()["pretrained_cfg"])
        assert cfg["input_size"] == [3, side, side] and cfg["num_classes"] == 3
        assert cfg["crop_pct"] == pytest.approx(crop) and cfg["interpolation"] == "bicubic"
        assert int(side / cfg["crop_pct"]) == side + (32 if side >= 224 else 0)
        assert cfg["label_names"] == list(CLASSES) and len(cfg["mean"]) == len(cfg["std"]) == 3


@pytest.mark.parametrize("ending", [".safetensors", pytest.param(".onnx", marks=pytest.mark.slow)])
def test_a_file_of_published_weights_predicts_as_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """timm's view of this network has a border that the view of this package has not at 160 pixels."""
    if ending == ".onnx":
        pytest.importorskip("onnxruntime")
    model = build_model(ModelConfig(name="test_resnet", stochastic_depth=0.0), 1000, 160, seed=1)
    net: Any = model.net
    with torch.no_grad():
        net.get_classifier().weight.mul_(100)
    save_weights(model, tmp_path / "weights.safetensors")
    published = load_predictor("test_resnet", "cpu", checkpoint=tmp_path / "weights.safetensors")
    files = photographs(tmp_path / "photographs", [(500, 375), (300, 260), (640, 400)])
    expected = predict(replace(published, workers=0), files).probs
    clean = predict(replace(published, view=None, workers=0), files).probs
    assert not np.allclose(expected, clean, rtol=2e-3, atol=0)
    monkeypatch.setattr("noisystudent.inference.export.load_predictor", lambda *_, **__: published)
    export(Path("test_resnet"), tmp_path / f"out{ending}", images=files)
    again = load_predictor(tmp_path / f"out{ending}", "cpu")
    np.testing.assert_allclose(predict(replace(again, workers=0), files).probs, expected, rtol=2e-4)


def test_published_weights_keep_the_view_of_predict() -> None:
    """timm's own transform of a loaded model has the size of the training, which is smaller here."""
    name = "mobilenetv4_conv_small_050.e3000_r224_in1k"
    cfg: Any = timm.get_pretrained_cfg(name)
    view = resolve_data_config(pretrained_cfg=cfg.to_dict(), use_test_size=True)
    side = view["input_size"][1]
    model = build_model(ModelConfig(name=name, dropout=0.0, stochastic_depth=0.0), 1000, side)
    own = partial(load._timm_view, view)
    content = Content(Predictor(models=(model,), classes=(), device=torch.device("cpu"), view=own), model)
    given = timm.create_model(name, pretrained_cfg=content.timm_config(), **content.timm_arguments())
    assert resolve_model_data_config(given) == view != resolve_data_config(pretrained_cfg=cfg.to_dict())
