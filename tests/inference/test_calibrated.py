"""The temperature of a model is kept with its weights, and used by all that gives probabilities to a user."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors
import tiny
import torch
from PIL import Image
from tiny import Capture, output

from noisystudent.config import ModelConfig
from noisystudent.inference.export import export
from noisystudent.inference.load import load_predictor, stored_temperature
from noisystudent.inference.predict import label_images, predict, score
from noisystudent.metrics import classification, scores, temperature
from noisystudent.models import build_model, save_weights
from noisystudent.pseudo_label.parts import unlist

T = 2.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`warm.safetensors` with the temperature T, `plain.safetensors` with the same weights, and images."""
    root = tmp_path_factory.mktemp("temperature")
    model = build_model(ModelConfig(name="resnet8_16", stochastic_depth=0.0), 3, tiny.SIDE, seed=1)
    save_weights(model, root / "plain.safetensors", tiny.CLASSES)
    save_weights(model, root / "warm.safetensors", tiny.CLASSES, {"temperature": str(T)})
    tiny.write_images(root / "images")
    return root


def probs(folder: Path, file: str, *, flip: bool = False) -> np.ndarray:
    predictor = replace(load_predictor(folder / file, "cpu"), flip=flip)
    return predict(predictor, folder / "images" / "test").probs


def test_predict_uses_it_and_changes_no_class(folder: Path) -> None:
    plain, warm = probs(folder, "plain.safetensors"), probs(folder, "warm.safetensors")
    np.testing.assert_allclose(warm, temperature.scaled(plain, T), atol=1e-6)
    assert np.abs(warm - plain).max() > 0.01
    np.testing.assert_array_equal(warm.argmax(1), plain.argmax(1))
    flipped = [probs(folder, file, flip=True) for file in ("plain.safetensors", "warm.safetensors")]
    np.testing.assert_allclose(flipped[1], temperature.scaled(flipped[0], T), atol=1e-6)
    np.testing.assert_array_equal(flipped[0].argmax(1), flipped[1].argmax(1))


def test_temperature_one_leaves_the_bits_alone(folder: Path) -> None:
    predictor = load_predictor(folder / "plain.safetensors", "cpu")
    images = torch.randint(0, 256, (5, 3, tiny.SIDE, tiny.SIDE), dtype=torch.uint8)
    assert predictor.temperature == 1.0
    with torch.inference_mode():
        assert torch.equal(predictor(images), predictor.model(images))
        warm = load_predictor(folder / "warm.safetensors", "cpu")
        assert torch.equal(warm(images), predictor(images) / T)


def test_a_mirrored_image_has_the_same_probabilities_with_flip(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    source, mirrored = folder / "images" / "test", tmp_path / "mirrored"
    for path in source.rglob("*.png"):
        copy = mirrored / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(copy)

    def rows(images: Path, *flags: str) -> list[dict[str, object]]:
        words = ("predict", folder / "warm.safetensors", images, "--format", "json", *flags)
        found: list[dict[str, object]] = json.loads(output(capsys, *words))
        return found

    assert rows(source, "--flip") == rows(mirrored, "--flip")
    assert rows(source) != rows(mirrored)


def test_an_export_keeps_it(folder: Path, tmp_path: Path) -> None:
    expected = probs(folder, "warm.safetensors")
    line = export(folder / "warm.safetensors", tmp_path / "out.safetensors").line
    assert line.endswith(f"; temperature = {T}  # softmax(logits / temperature)")
    assert stored_temperature(tmp_path / "out.safetensors") == T
    found = predict(load_predictor(tmp_path / "out.safetensors", "cpu"), folder / "images" / "test").probs
    np.testing.assert_array_equal(found, expected)
    assert "temperature" not in export(folder / "plain.safetensors", tmp_path / "plain.safetensors").line


@pytest.mark.parametrize("file", ["warm.safetensors", "plain.safetensors"])
def test_the_probabilities_in_the_onnx_graph_are_those_of_predict(
    folder: Path, tmp_path: Path, file: str
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    line = export(folder / file, tmp_path / "model.onnx").line
    assert ".run(['probs']" in line
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    paths = sorted((folder / "images" / "test").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) for path in paths])
    logits, inside = session.run(["logits", "probs"], {"images": pixels})
    expected = probs(folder, file)
    np.testing.assert_allclose(inside, expected, atol=1e-5)
    with torch.inference_mode():
        plain = load_predictor(folder / "plain.safetensors", "cpu")(torch.from_numpy(pixels))
    np.testing.assert_allclose(logits, plain, atol=1e-4)
    loaded = load_predictor(tmp_path / "model.onnx")
    assert loaded.temperature == (T if file == "warm.safetensors" else 1.0)
    np.testing.assert_allclose(predict(loaded, folder / "images" / "test").probs, expected, atol=1e-5)


def test_pseudo_labels_do_not_depend_on_it(folder: Path, tmp_path: Path) -> None:
    def labels(file: str) -> np.ndarray:
        predictor, out = load_predictor(folder / file, "cpu"), tmp_path / file
        written, _ = label_images(predictor, folder / "images" / "pool", out)
        parts = sorted(written.path.glob("*.parquet"))
        return np.concatenate([unlist(pq.read_table(part)["probs"]) for part in parts])

    np.testing.assert_array_equal(labels("warm.safetensors"), labels("plain.safetensors"))


def test_evaluate_gives_both(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    def rows(file: str, *flags: str) -> dict[tuple[str, str], float]:
        out = tmp_path / "rows.json"
        words = ("--data", folder / "images" / "test", "--tests", "clean,calibration,fgsm", "--out", out)
        output(capsys, "evaluate", folder / file, *words, "--overwrite", *flags)
        return {(row["test"], row["measure"]): row["value"] for row in json.loads(out.read_text())}

    plain, warm = rows("plain.safetensors"), rows("warm.safetensors")
    assert {key: value for key, value in warm.items() if "calibrated" not in key[1]} == plain
    assert not any("calibrated" in measure for _, measure in plain)
    found, _ = score(load_predictor(folder / "warm.safetensors", "cpu"), folder / "images" / "test")
    for name in ("nll", "ece", "brier"):
        for test in ("clean", "calibration"):
            assert warm[test, f"{name} calibrated"] == pytest.approx(found[name], rel=1e-5)
    assert "no gradients" in tiny.refused(
        capsys, 2, "evaluate", folder / "plain.safetensors", "--data", folder / "images" / "test", "--flip",
        "--tests", "fgsm",
    )  # fmt: skip


@pytest.mark.parametrize("bad", ["0", "-1", "nan", "inf", "warm"])
def test_a_damaged_temperature_is_one_line(tmp_path: Path, images: Path, capsys: Capture, bad: str) -> None:
    model = build_model(ModelConfig(name="resnet8_16"), 3, tiny.SIDE)
    save_weights(model, tmp_path / "bad.safetensors", tiny.CLASSES, {"temperature": bad})
    line = tiny.refused(capsys, 2, "predict", tmp_path / "bad.safetensors", images / "test")
    assert "the description of its model is damaged" in line


def test_a_run_fits_it_on_val_and_reports_both(images: Path, tmp_path: Path) -> None:
    val = tmp_path / "val"
    for kind, label in enumerate(tiny.CLASSES):
        (val / label).mkdir(parents=True)
        for number, pixels in enumerate(tiny.pictures(kind, 40, seed=9)):
            Image.fromarray(pixels).save(val / label / f"{number}.png")
    # Too few steps and much smoothing: such a model is less sure than right.
    fields = [
        ("data.val", str(val)),
        ("teacher.train.label_smoothing", 0.5),
        ("evaluate.tests", ["calibration"]),
    ]
    out = tmp_path / "run"
    lines = tiny.run(tiny.config(images, *fields), out)
    fitted = {}
    for index, role in ((0, "teacher"), (1, "student"), (1, "control")):
        model = out / f"iteration-{index}" / role
        predictions = scores.load_predictions(model / "predictions-val.npz")
        fitted[role] = stored_temperature(model / "model.safetensors")
        assert fitted[role] == temperature.fit(*predictions)
        evaluation = json.loads((out / f"iteration-{index}" / "evaluation.json").read_text())
        own = evaluation["calibrated"][role]
        assert own["temperature"] == fitted[role]
        test = scores.load_predictions(model / "predictions-test.npz")
        ece = classification.ece(temperature.scaled(test.probs, fitted[role]), test.labels, 15)
        assert own["test"]["ece"] == pytest.approx(ece)
        assert evaluation["models"][role]["test"]["ece"] == classification.ece(*test, 15)
        assert evaluation["robustness"][role]["calibration"]["ece"] == pytest.approx(
            classification.ece(*test, 15)
        ), "the columns of the paper's tables stay at temperature 1"
    assert any(value < 1 for value in fitted.values())
    assert any("; at temperature " in line for line in lines if ": val top-1 " in line)
    with safetensors.safe_open(out / "iteration-0" / "teacher" / "model.safetensors", "pt") as file:
        assert float(file.metadata()["temperature"]) == fitted["teacher"]
