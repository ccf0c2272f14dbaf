"""A file of each format says what `predict` says of the same photographs, or it is not written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from PIL import Image
from test_export import photographs
from tiny import Capture, call, output, refused

from noisystudent.config import ModelConfig
from noisystudent.errors import RunError
from noisystudent.inference import formats
from noisystudent.inference.content import Content
from noisystudent.inference.export import export
from noisystudent.inference.load import load_predictor
from noisystudent.inference.predict import predict
from noisystudent.models import build_model, save_weights

CLASSES = ("blue", "green", "red é")
SIZES = [(500, 375), (224, 224), (300, 260), (120, 90), (640, 400)]
ENDINGS = {"safetensors": ".safetensors", "timm": "", "onnx": ".onnx", "torch-export": ".pt2"}
Result = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def weights(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose classes differ between photographs, with a crop and a temperature."""
    model = build_model(ModelConfig(name="resnet8_16", stochastic_depth=0.0), 3, 224, seed=1)
    net: Any = model.net
    with torch.no_grad():
        # Random weights of timm's networks hardly tell images apart.
        net.get_classifier().weight.mul_(100)
        views = [
            prepared(path, {"resolution": 224, "crop": 0.875, "interpolation": "bicubic"}) for path in photos
        ]
        net.get_classifier().bias.sub_(model.eval()(torch.from_numpy(np.stack(views))).mean(0))
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(model, path, CLASSES, {"temperature": "1.5"})
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return photographs(tmp_path_factory.mktemp("photos") / "photographs", SIZES)


@pytest.fixture(scope="module")
def expected(weights: Path, photos: list[Path]) -> np.ndarray:
    """Probabilities (N, K) of `predict`."""
    return predict(load_predictor(weights, "cpu"), photos).probs


@pytest.fixture(scope="module")
def onnx(weights: Path, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export(weights, path, images=photos)
    return path


@pytest.fixture(scope="module")
def raw_onnx(weights: Path, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("raw") / "model.onnx"
    export(weights, path, raw_images=True, images=photos)
    return path


def prepared(path: Path, about: dict[str, Any]) -> np.ndarray:
    """The view (3, S, S) uint8 of a photograph, made with Pillow as the file describes it."""
    image = Image.open(path).convert("RGB")
    side = about["resolution"]
    if image.size != (side, side):
        cut = max(1, round(about["crop"] * min(image.size)))
        left, top = ((length - cut) // 2 for length in image.size)
        image = image.crop((left, top, left + cut, top + cut))
        image = image.resize((side, side), Image.Resampling[about["interpolation"].upper()])
    return np.asarray(image).transpose(2, 0, 1)


def in_onnx(path: Path, images: np.ndarray) -> Result:
    import onnxruntime

    logits, probs = onnxruntime.InferenceSession(str(path)).run(["logits", "probs"], {"images": images})
    return logits, probs


def in_torch(path: Path, images: np.ndarray) -> Result:
    logits, probs = torch.export.load(path).module()(torch.from_numpy(images))
    return logits.detach().numpy(), probs.detach().numpy()


def in_openvino(path: Path, images: np.ndarray) -> Result:
    openvino = pytest.importorskip("openvino")
    outputs = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)
    return outputs["logits"], outputs["probs"]


def check(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Equal up to a share of the spread between the photographs, and the same classes."""
    spread = float(np.ptp(expected, axis=0).max())
    assert spread > 0.1 and len(set(expected.argmax(1))) > 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * spread)
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


def described(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


# --- what `predict` says ---


def test_pillow_and_onnx_runtime_alone_predict_the_same(
    onnx: Path, photos: list[Path], expected: np.ndarray
) -> None:
    about = json.loads(described(onnx).read_text())
    images = np.stack([prepared(path, about) for path in photos])
    check(in_onnx(onnx, images)[1], expected, 0.02)
    one, _ = in_onnx(onnx, images[:1])
    np.testing.assert_allclose(one, in_onnx(onnx, images)[0][:1], atol=1e-4)


@pytest.mark.slow  # the exporter takes its time
def test_raw_photographs_in_onnx(raw_onnx: Path, photos: list[Path], expected: np.ndarray) -> None:
    images = [np.asarray(Image.open(path))[None] for path in photos]
    check(np.concatenate([in_onnx(raw_onnx, image)[1] for image in images]), expected, 0.02)
    _, twice = in_onnx(raw_onnx, np.concatenate([images[0], images[0]]))
    np.testing.assert_allclose(twice, in_onnx(raw_onnx, images[0])[1].repeat(2, 0), atol=1e-5)


@pytest.mark.slow  # the exporter takes its time
def test_predict_reads_both_kinds_of_onnx(
    onnx: Path, raw_onnx: Path, photos: list[Path], expected: np.ndarray
) -> None:
    for path in (onnx, raw_onnx):
        np.testing.assert_allclose(predict(load_predictor(path), photos).probs, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("raw", [False, True], ids=["views", "raw"])
def test_torch_export(
    weights: Path, photos: list[Path], expected: np.ndarray, tmp_path: Path, raw: bool
) -> None:
    path = tmp_path / "model.pt2"
    export(weights, path, raw_images=raw, images=photos)
    about = json.loads(described(path).read_text())
    images = [np.array(Image.open(photo)) if raw else prepared(photo, about).copy() for photo in photos]
    check(np.concatenate([in_torch(path, image[None])[1] for image in images]), expected, 0.02)
    inside = {"description.json": ""}
    torch.export.load(path, extra_files=inside)
    assert json.loads(inside["description.json"]) == about


@pytest.mark.slow
@pytest.mark.parametrize("raw", [False, True], ids=["views", "raw"])
def test_openvino(weights: Path, photos: list[Path], expected: np.ndarray, tmp_path: Path, raw: bool) -> None:
    openvino = pytest.importorskip("openvino")
    path = tmp_path / "model.xml"
    export(weights, path, raw_images=raw, images=photos)
    about = json.loads(described(path).read_text())
    images = [np.array(Image.open(photo)) if raw else prepared(photo, about) for photo in photos]
    check(np.concatenate([in_openvino(path, image[None])[1] for image in images]), expected, 0.02)
    model = openvino.Core().read_model(path)
    assert json.loads(str(model.get_rt_info(["noisystudent", "classes"]).value)) == list(CLASSES)


def test_a_folder_of_timm_is_the_safetensors_file(weights: Path, photos: list[Path], tmp_path: Path) -> None:
    import timm

    export(weights, tmp_path / "timm", "timm", images=photos)
    net = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    state = safetensors.torch.load_file(weights)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert net.pretrained_cfg["label_names"] == list(CLASSES)
    again = load_predictor(tmp_path / "timm", "cpu")
    assert again.classes == CLASSES and again.temperature == 1.5


# --- the description ---


def test_the_file_says_what_the_file_beside_it_says(
    onnx: Path, weights: Path, photos: list[Path], tmp_path: Path
) -> None:
    import onnxruntime

    plain = tmp_path / "model.safetensors"
    export(weights, plain, images=photos)
    with safetensors.safe_open(plain, "pt") as file:
        in_weights = file.metadata()
    in_graph = onnxruntime.InferenceSession(str(onnx)).get_modelmeta().custom_metadata_map
    for path, metadata in ((onnx, in_graph), (plain, in_weights)):
        about = json.loads(described(path).read_text())
        assert about["classes"] == list(CLASSES) and about["temperature"] == 1.5 and about["crop"] == 0.875
        for key, value in about.items():
            assert metadata[key] == (value if isinstance(value, str) else json.dumps(value))


# --- an export made wrong ---


def other(content: Content) -> Content:
    """The content with a slightly different network."""
    model = build_model(ModelConfig(name=content.model.name, stochastic_depth=0.0), 3, 224)
    model.net.load_state_dict(content.model.net.state_dict())
    net: Any = model.net
    with torch.no_grad():
        net.get_classifier().weight[0].mul_(1.05)
    return replace(content, model=model.eval())


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=[pytest.mark.slow] if form in ("onnx", "torch-export") else [])
        for form in ENDINGS
    ],
)
def test_a_wrong_export_is_refused(
    weights: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    right = formats.FORMATS[form]
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    wrong = replace(right, write=lambda content, path: right.write(other(content), path))
    monkeypatch.setitem(formats.FORMATS, form, wrong)
    out = tmp_path / f"out{ENDINGS[form]}"
    with pytest.raises(
        RunError, match=r"out\S* is not written: its logits on 5 given images differ by at most"
    ):
        export(weights, out, form, images=photos)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # the exporter takes its time
def test_a_wrong_view_in_the_graph_is_refused(
    weights: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noisystudent.inference.graph.clean_share", lambda _: 1.0)
    with pytest.raises(RunError, match="is not written"):
        export(weights, tmp_path / "out.pt2", raw_images=True, images=photos)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_export_leaves_the_older_file(
    weights: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.safetensors"
    export(weights, out, images=photos)
    before = {path: path.read_bytes() for path in (out, described(out))}
    right = formats.FORMATS["safetensors"]
    wrong = replace(right, write=lambda content, path: right.write(other(content), path))
    monkeypatch.setitem(formats.FORMATS, "safetensors", wrong)
    with pytest.raises(RunError):
        export(weights, out, images=photos, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- the images of the comparison ---


def test_they_are_images_of_val_if_they_can_be_read(
    images: Path, finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert call("export", finished, "--out", tmp_path / "a.safetensors") == 0
    assert "logits on 12 images of val differ by at most 0 " in capsys.readouterr().err
    (images / "val").rename(images / "moved")
    try:
        assert call("export", finished, "--out", tmp_path / "b.safetensors") == 0
    finally:
        (images / "moved").rename(images / "val")
    assert "val cannot be read: " in (err := capsys.readouterr().err) and "on 4 photographs differ" in err


def test_wrong_calls(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.safetensors"
    line = refused(capsys, 2, "export", finished, "--out", out, "--raw-images")
    assert line.endswith("holds weights alone; use onnx, torch-export, openvino")
    line = refused(capsys, 2, "export", finished, "--out", out, "--format", "onnx")
    assert line.endswith(f"--out is {out}; the file must end in .onnx")
    described(out).write_text("mine")
    line = refused(capsys, 2, "export", finished, "--out", out)
    assert line.endswith(f"{described(out)} exists; name another file, or give --overwrite")
    (tmp_path / "mine").mkdir()
    for flags in ([], ["--overwrite"]):
        line = refused(capsys, 2, "export", finished, "--out", tmp_path / "mine", "--format", "timm", *flags)
        assert line.endswith("which exists; name a new folder")
    for file in (out, out.with_suffix(".pt2")):  # each has a description of its own
        assert output(capsys, "export", finished, "--out", file, *(["--overwrite"] if file == out else []))
    assert json.loads(described(out).read_text())["classes"] == list(tiny.CLASSES)
