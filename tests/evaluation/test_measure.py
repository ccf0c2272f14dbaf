"""`noisystudent evaluate` on runs, timm models, checkpoints and ONNX: accuracy and robustness."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import timm
import tiny
import torch
from PIL import Image
from tiny import Capture, output
from torch import Tensor

from noisystudent.config import ModelConfig
from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet
from noisystudent.errors import InputError
from noisystudent.evaluation import copies, test_images
from noisystudent.evaluation.measure import measure
from noisystudent.evaluation.options import Options
from noisystudent.evaluation.rows import Row
from noisystudent.inference.images import class_numbers, open_labeled, scanned
from noisystudent.inference.load import load_predictor
from noisystudent.inference.predictor import Predictor
from noisystudent.models import build_model, save_weights
from noisystudent.robustness.corruptions import corrupt
from noisystudent.robustness.imagenet import imagenet_classes
from noisystudent.robustness.measures import CORRUPTIONS
from noisystudent.run.record import write_record

PHOTOS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "imagenet-samples" / "photos.tar"
WITHOUT_FROST = [name for name in CORRUPTIONS if name != "frost"]


def rows(path: Path) -> dict[tuple[str, str], float]:
    return {(row["test"], row["measure"]): row["value"] for row in json.loads(path.read_text())}


def test_every_test_of_a_run_is_a_table_and_a_file(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ("evaluate", finished, "--data", images / "test", "--fast", "--seed", "3")
    output(capsys, *words, "--tests", "clean,calibration,c,p,fgsm,pgd", "--out", tmp_path / "all.json")
    found = rows(tmp_path / "all.json")
    assert {test for test, _ in found} == {"clean", "calibration", "c", "p", "fgsm", "pgd"}
    errors = [
        value for (test, measure), value in found.items() if test == "c" and measure.startswith("error")
    ]
    assert found["c", "mean error"] == pytest.approx(np.mean(errors))
    assert all(0 <= value <= 1 for (test, _), value in found.items() if test in ("c", "fgsm", "pgd"))
    output(capsys, *words, "--tests", "c", "--out", tmp_path / "one.csv")
    with (tmp_path / "one.csv").open() as file:
        again = {(row["test"], row["measure"]): float(row["value"]) for row in csv.DictReader(file)}
    assert again == {key: value for key, value in found.items() if key[0] == "c"}


def test_published_arrays_take_the_place_of_generated_ones(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    """CIFAR-10-C's layout, written from the very corruptions that would be made, gives the same errors."""
    predictor = load_predictor(finished, "cpu")
    with scanned(
        open_labeled(images / "test"),
        lambda names: class_numbers(predictor.classes, names),
        Progress(),
        stored=tiny.SIDE,
    ) as (found, _):
        clean = torch.cat(list(predictor.views(found)))
        labels = found.labels
    for name in CORRUPTIONS:
        made = "fog" if name == "frost" else name
        all_five = (
            corrupt(clean, made, severity, seed=0, rows=np.arange(len(clean))) for severity in range(1, 6)
        )
        copies.write_arrays(tmp_path / "cifar-10-c", name, all_five, labels)
    words = ("evaluate", finished, "--tests", "c", "--out")
    output(capsys, *words, tmp_path / "published.json", "--data", tmp_path / "cifar-10-c")
    output(capsys, *words, tmp_path / "generated.json", "--data", images / "test")
    published, generated = rows(tmp_path / "published.json"), rows(tmp_path / "generated.json")
    for name in WITHOUT_FROST:
        assert published["c", f"error {name}"] == generated["c", f"error {name}"], name
    assert published["c", "error frost"] == generated["c", "error fog"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--tests", "clean,corruptions"),
            "--tests has 'corruptions'; choose one or more of clean, calibration, c, p",
        ),
        (("--tests", "a"), "--tests has a, which needs a model of ImageNet's 1000 classes; this model has 3"),
        (("--tests", "c", "--frost", "/no/frost"), "/no/frost must hold frost1.png"),
        (("--tests", "clean", "--out", "x.txt"), "--out is x.txt; the file must end in .json or .csv"),
    ],
)
def test_a_wrong_call_is_one_line(
    finished: Path, images: Path, capsys: Capture, words: tuple[str, ...], message: str
) -> None:
    assert tiny.call("evaluate", finished, "--data", images / "test", *words) == 2
    assert message in capsys.readouterr().err


def test_classes_that_the_model_has_not_are_named(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / name / "1.png")
    assert tiny.call("evaluate", finished, "--data", tmp_path) == 2
    assert "class 'cat' is not one of the model's 3" in capsys.readouterr().err


def test_what_was_computed_before_an_error_is_kept(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A published set that lacks a severity stops the test, not what stands before it."""
    root = tmp_path / "data"
    shutil.copytree(images / "test", root / "val")
    for name in CORRUPTIONS[:2]:
        shutil.copytree(images / "test", root / "imagenet-c" / name / "1")
    out = tmp_path / "rows.json"
    assert tiny.call("evaluate", finished, "--data", root, "--tests", "clean,c", "--out", out) == 2
    printed = capsys.readouterr()
    assert "has no folder gaussian_noise/2" in printed.err
    assert "top1" in printed.out and ("clean", "top1") in rows(out)


def test_c_and_p_come_before_a_higher_resolution(finished: Path, images: Path, tmp_path: Path) -> None:
    """As in the paper: of a run whose student was fine-tuned at more pixels, unless a file is named."""
    run, data = tmp_path / "run", images / "test"
    shutil.copytree(finished, run)
    student, larger = load_predictor(finished, "cpu"), run / "iteration-1" / "student" / "finetune"

    def second(side: int) -> Path:
        model = build_model(
            ModelConfig(name=student.model.name, dropout=0, stochastic_depth=0), 3, side, seed=3
        )
        save_weights(model, larger / "model.safetensors", student.classes)
        write_record(larger / "stage.json", {"name": "", "fingerprint": "", "inputs": {}, "status": "done"})
        return run

    def measured(model: Path, size: int | None = None) -> dict[tuple[str, str], Row]:
        options = Options(tests=("clean", "c"), write=tmp_path / "copies" if size is None else None)
        found = measure(load_predictor(model, "cpu", size=size), data, options)
        return {(row.test, row.measure): row for row in found}

    before, after = measured(finished), measured(second(24))
    assert after["c", "mean error"].value == before["c", "mean error"].value
    assert after["c", "mean error"].note.endswith(f"before its fine-tuning, of {tiny.SIDE} pixels")
    assert after["clean", "nll"].value != before["clean", "nll"].value
    for model, size in ((larger, 24), (second(24), 24), (second(tiny.SIDE), tiny.SIDE)):
        assert "before its" not in measured(model, size)["c", "mean error"].note
    assert load_predictor(run, "cpu").before is None


# --- a timm model with real weights on real photographs ---


@pytest.fixture(scope="module")
def lite0(lite0_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of EfficientNet-Lite0 under timm's names."""
    given = torch.load(lite0_file, weights_only=True)
    model = build_model(ModelConfig(name="tf_efficientnet_lite0", dropout=0, stochastic_depth=0), 1000, 224)
    own = model.net.state_dict()
    assert [value.shape for value in given.values()] == [value.shape for value in own.values()]
    model.net.load_state_dict(dict(zip(own, given.values(), strict=True)))
    path = tmp_path_factory.mktemp("lite0") / "lite0.safetensors"
    save_weights(model.eval(), path, imagenet_classes())
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not PHOTOS.is_file():
        pytest.skip(f"{PHOTOS} is not there")
    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(PHOTOS) as tar:
        tar.extractall(folder, filter="data")
    return folder / "photos"


def test_timm_s_own_view_and_weights_are_right_on_photographs(
    lite0: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ("evaluate", "tf_efficientnet_lite0", "--checkpoint", lite0, "--data", photos)
    output(capsys, *words, "--out", tmp_path / "rows.json")
    net = timm.create_model("tf_efficientnet_lite0", checkpoint_path=str(lite0)).eval()
    config = timm.data.resolve_model_data_config(net, use_test_size=True)
    show = timm.data.create_transform(**config, is_training=False)
    right, total = 0, 0
    for path in sorted(photos.glob("*/*")):
        with Image.open(path) as image, torch.inference_mode():
            predicted = int(net(show(image.convert("RGB"))[None]).argmax())
        right += imagenet_classes()[predicted] == path.parent.name
        total += 1
    assert total == 40
    assert rows(tmp_path / "rows.json")["clean", "top1"] == pytest.approx(right / total)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_gives_the_rows_of_the_model_it_was_made_of(
    lite0: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("onnxruntime")
    output(capsys, "export", lite0, "--out", tmp_path / "lite0.onnx")
    few = tmp_path / "few"  # of each photograph there are 310 frames
    for path in sorted(photos.iterdir())[:3]:
        shutil.copytree(path, few / path.name)
    found: dict[str, dict[tuple[str, str], float]] = {}
    for model in (lite0, tmp_path / "lite0.onnx"):
        found[model.suffix] = {}
        for data, tests in ((photos, "clean,c"), (few, "p")):
            words = ("evaluate", model, "--data", data, "--fast", "--tests", tests)
            output(capsys, *words, "--out", tmp_path / "rows.json", "--overwrite")
            found[model.suffix] |= rows(tmp_path / "rows.json")
    assert found[".onnx"].keys() == found[".safetensors"].keys()
    for key, value in found[".safetensors"].items():
        assert found[".onnx"][key] == pytest.approx(value, abs=0.03), (
            key
        )  # an image close to the decision boundary may change its class
    with pytest.raises(
        InputError, match=r"--eval-size is 300; .* was exported for 224 pixels, its only size"
    ):
        load_predictor(tmp_path / "lite0.onnx", size=300)
    assert tiny.call("evaluate", tmp_path / "lite0.onnx", "--data", photos, "--tests", "fgsm") == 2
    assert "lite0.onnx has no gradients (an ONNX file never has)" in capsys.readouterr().err


def test_the_options_of_the_command_reach_the_test(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ("evaluate", finished, "--data", images / "test", "--tests", "c", "--fast")
    printed = output(
        capsys, *words, "--jpeg", "--source-size", 32, "--eval-size", 24, "--write", tmp_path / "copies"
    )
    assert "regenerated at 32 pixels, constants of 32, resized to 24, saved as JPEG 85" in printed
    assert (tmp_path / "copies" / "fog.npy").is_file()
    assert tiny.call(*words, "--t5d", tmp_path / "none.json") == 2
    assert "none.json cannot be read as JSON" in capsys.readouterr().err
    assert tiny.call(*words, "--out", tmp_path / "rows.txt") == 2
    ended = capsys.readouterr()
    assert "must end in .json or .csv" in ended.err and not ended.out  # before anything was measured


def test_whole_images_are_decoded_once_for_all_perturbations(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def wholes(*_: object) -> Iterator[Tensor]:
        read.append(1)
        yield torch.zeros(1, 3, 256, 300, dtype=torch.uint8)

    monkeypatch.setattr(test_images, "_wholes", wholes)
    view = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    model = cast(Predictor, SimpleNamespace(resolution=224, views=lambda *_: iter([view])))
    images = cast(ImageSet, SimpleNamespace(labels=np.zeros(1, np.int64)))
    made = test_images.generate(model, images, np.zeros(1, np.int64), Options(), None)
    first = [next(iter(made.perturbed(name))) for name in ("brightness", "translate")]
    assert all(frames.shape[-2:] == (224, 224) for frames in first) and read == [1]
