"""What a model is shown: views of the published protocols and its own, and copies on disk of what is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import imagenet_like
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, InterpolationMode, Resize
from torchvision.transforms import functional as pillow

from noisystudent.errors import InputError, Stopped
from noisystudent.evaluate.corruptions import corrupt
from noisystudent.evaluate.perturbations import sequence
from noisystudent.inference import Asked, Predictor, copies, load_predictor, measure, published, showing
from noisystudent.models.registry import save_weights
from noisystudent.runtime import Silent, StopFlag

CLASSES = tuple("abc")
MODEL = imagenet_like.predictor(classes=CLASSES)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return imagenet_like.pictures(tmp_path / "images", CLASSES)


def scene(model: Predictor, data: Path, **options: object) -> showing.Scene:
    """What would be shown; the scan behind it is gone, so only what is remembered can be looked at."""
    asked = Asked(**options)  # type: ignore[arg-type]
    with showing.scene(model, data, asked, StopFlag(), Silent()) as found:
        for _ in found.pictures.clean(), *(found.pictures.corrupted("contrast", 1),):
            list(_)
    return found


def pixels(batches: Iterator[tuple[Tensor, np.ndarray]]) -> Tensor:
    return torch.cat([images for images, _ in batches])


# --- ImageNet-C's and -P's own views ---


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (256, 256), (231, 500)])
def test_sources_are_cut_as_the_published_sets_were(size: tuple[int, int]) -> None:
    """Resize(256), CenterCrop(224); at 299 the middle 0.875 of each side; 32 and 64 are resized and cut."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    for side, wide in ((224, 256), (64, 64), (32, 32)):
        expected = np.array(CenterCrop(side)(Resize(wide)(image)))
        assert np.array_equal(showing._cut(image, side).permute(1, 2, 0).numpy(), expected)
    inner = CenterCrop([int(0.875 * length) for length in size])(image)
    expected = np.array(inner.resize((299, 299), Image.Resampling.BILINEAR))
    assert np.array_equal(showing._cut(image, 299).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(("height", "width"), [(300, 420), (420, 300)])
def test_geometry_moves_the_whole_picture_before_the_crop(height: int, width: int, tmp_path: Path) -> None:
    """Not its middle square: a rotated, tilted or shrunken landscape has its sides to show."""
    model = imagenet_like.predictor(224, CLASSES)
    data = imagenet_like.pictures(tmp_path, CLASSES[:2], each=1, size=(height, width))
    asked = Asked(tests=("p",))
    with showing.scene(model, data, asked, StopFlag(), Silent()) as found:
        rotated, shrunken = (torch.cat(list(found.pictures.perturbed(name))) for name in ("rotate", "scale"))
    for row, path in enumerate(sorted(data.glob("*/*"))):
        whole = Resize(256)(Image.open(path))
        bilinear = InterpolationMode.BILINEAR
        for frame in (0, 30):
            turned = pillow.affine(whole, frame - 15, [0, 0], 1.0, [0.0, 0.0], interpolation=bilinear)
            expected = np.array(pillow.center_crop(turned, [224, 224]))
            assert np.array_equal(rotated[row, frame].permute(1, 2, 0).numpy(), expected)
        small = pillow.affine(whole, 0, [0, 0], 0.4, [0.0, 0.0], interpolation=bilinear)
        expected = np.array(pillow.center_crop(small, [224, 224]))
        assert np.array_equal(shrunken[row, 0].permute(1, 2, 0).numpy(), expected)


# --- options ---


def test_an_image_has_its_own_chance_in_a_sample_too(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scene(MODEL, data).pictures
    monkeypatch.setattr(showing, "FAST_IMAGES", 5)
    few = scene(MODEL, data, fast=True)
    clean = {image.numpy().tobytes(): row for row, image in enumerate(pixels(whole.clean()))}
    rows = [clean[image.numpy().tobytes()] for image in pixels(few.pictures.clean())]
    assert len(rows) == 5 and rows != list(range(5))
    noisy = pixels(few.pictures.corrupted("gaussian_noise", 3))
    assert torch.equal(noisy, pixels(whole.corrupted("gaussian_noise", 3))[rows])
    assert few.notes["c"].endswith("5 images, severities 1, 3, 5 only")


def test_jpeg_is_saved_where_it_is_asked_for(data: Path) -> None:
    plain, saved = scene(MODEL, data), scene(MODEL, data, jpeg=True)
    clean, rows = pixels(plain.pictures.clean()), np.arange(9)
    assert torch.equal(pixels(saved.pictures.clean()), clean)
    for found, jpeg in ((plain, False), (saved, True)):
        expected = corrupt(clean, "fog", 2, seed=0, rows=rows, jpeg=jpeg)
        assert torch.equal(pixels(found.pictures.corrupted("fog", 2)), expected)
        assert ("saved as JPEG 85" if jpeg else "no JPEG") in found.notes["c"]


def test_copies_of_another_size_are_made_there_and_resized(data: Path) -> None:
    model = imagenet_like.predictor(48, CLASSES)
    found = scene(model, data, source_size=32)
    sources = [showing._cut(Image.open(path).convert("RGB"), 32) for path in sorted(data.glob("*/*"))]
    made = corrupt(torch.stack(sources), "impulse_noise", 5, seed=0, rows=np.arange(9))
    assert torch.equal(pixels(found.pictures.corrupted("impulse_noise", 5)), published.fit(made, model))
    assert pixels(found.pictures.clean()).shape[-1] == 48
    assert "regenerated at 32 pixels, constants of 32, shown at 48, no JPEG" in found.notes["c"]
    frames = next(iter(found.pictures.perturbed("translate")))
    moved = sequence(torch.stack(sources[:8]), "translate", seed=0, rows=np.arange(8))
    assert torch.equal(frames, published.fit(moved.flatten(0, 1), model).unflatten(0, moved.shape[:2]))


def test_the_nearest_constants_are_said(data: Path) -> None:
    note = scene(imagenet_like.predictor(48, CLASSES), data).notes["c"]
    assert note.startswith("ImageNet-C protocol, regenerated at 48 pixels, constants of 32, no JPEG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tests": ("c",), "source_size": 100}, "--source-size is 100; the published sets are of 32, 64"),
        ({"tests": ("clean",), "write": Path("copies")}, "--write needs c among --tests"),
        ({"tests": ("clean", "a")}, "--tests has a, which needs a model of ImageNet's 1000 classes"),
        ({"tests": ()}, "--tests names no test; choose of clean, calibration"),
        ({"tests": ("clean", "gausian_noise")}, "--tests has 'gausian_noise'; choose of clean"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_measured(
    data: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        next(measure(MODEL, data, Asked(**options)))  # type: ignore[arg-type]


def test_fewer_than_two_classes(tmp_path: Path) -> None:
    one = imagenet_like.pictures(tmp_path, CLASSES[:1])
    with pytest.raises(InputError, match="has images of one class only; a test needs two classes or more"):
        next(measure(MODEL, one, Asked()))
    with pytest.raises(InputError, match="tells no two classes apart"):
        next(measure(imagenet_like.predictor(classes=CLASSES[:1]), one, Asked()))


# --- copies on disk ---


def test_arrays_are_written_measured_and_read_back(data: Path, tmp_path: Path) -> None:
    shown = imagenet_like.told(MODEL, data, tests=("clean", "c"))
    out = tmp_path / "copies"
    written = imagenet_like.told(MODEL, data, tests=("clean", "c"), write=out)
    again = imagenet_like.told(MODEL, out, tests=("c",))
    for key, row in written.items():
        assert row.value == shown[key].value and (key[0] != "c" or again[key].value == row.value)
    assert np.load(out / "fog.npy").shape == (45, 32, 32, 3)
    assert f"written to {out}" in written["c", "mean error"].note
    assert again["c", "mean error"].note == f"ImageNet-C protocol, regenerated, in {out}"
    with pytest.raises(InputError, match="was written for other classes than the model's"):
        imagenet_like.told(imagenet_like.predictor(classes=("a", "c", "b")), out, tests=("c",))
    with pytest.raises(InputError, match="holds corrupted images already"):
        imagenet_like.told(MODEL, out, tests=("c",), write=tmp_path / "more")


def test_folders_are_written_as_imagenet_c_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JPEG of quality 85, under the names of the originals, told apart where two have one."""
    monkeypatch.setattr(copies, "_LARGE", 32)
    (data / "a" / "0.bmp").write_bytes(b"")
    Image.open(data / "a" / "1.png").rotate(90).save(data / "a" / "0.bmp")
    out = tmp_path / "copies"
    written = imagenet_like.told(MODEL, data, tests=("c",), write=out)
    saved = imagenet_like.told(MODEL, data, tests=("c",), jpeg=True)
    names = {path.name for path in (out / "fog" / "2" / "a").iterdir()}
    assert names == {"0-000000.JPEG", "0-000001.JPEG", "1.JPEG", "2.JPEG"}
    assert {key: row.value for key, row in written.items()} == {key: row.value for key, row in saved.items()}
    assert "saved as JPEG 85" in written["c", "mean error"].note


def test_writing_goes_on_where_it_was_stopped(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "copies"

    class Later(StopFlag):
        """Comes while the fourth corruption is written."""

        def check(self) -> None:
            self.signal = "SIGTERM" if (out / "impulse_noise.npy").is_file() else None
            super().check()

    with pytest.raises(Stopped, match="run the same command again to resume"):
        list(measure(MODEL, data, Asked(tests=("c",), write=out), stop=Later()))
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    assert {"gaussian_noise.npy", "impulse_noise.npy"} < before.keys() and "fog.npy" not in before
    imagenet_like.told(MODEL, data, tests=("c",), write=out)
    assert (out / "gaussian_noise.npy").stat().st_mtime_ns == before["gaussian_noise.npy"]


def test_copies_of_two_sets_never_meet(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "copies"
    imagenet_like.told(MODEL, data, tests=("c",), write=out)
    for options in ({"seed": 1}, {"jpeg": True}, {"source_size": 32}):
        with pytest.raises(InputError, match="holds copies of other images or options"):
            imagenet_like.told(MODEL, data, tests=("c",), write=out, **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    for folder, message in (
        (tmp_path / "full", "holds something else"),
        (tmp_path / "full" / "mine.txt", "holds something else"),
        (tmp_path / "full" / "mine.txt" / "in", "cannot be written: Not a directory"),
    ):
        with pytest.raises(InputError, match=message):
            imagenet_like.told(MODEL, data, tests=("c",), write=folder)
    assert json.loads((out / "about.json").read_text())["classes"] == list(CLASSES)


# --- which model ---


def test_a_size_to_be_shown_at_is_the_models(tmp_path: Path, data: Path) -> None:
    own = imagenet_like.predictor(32, CLASSES)
    path = tmp_path / "own.safetensors"
    save_weights(own.model, path, CLASSES)  # type: ignore[arg-type]
    larger = load_predictor(path, "cpu", size=48)
    assert larger.model.resolution == 48
    shapes = {tuple(images.shape[1:]) for images, _ in scene(larger, data).pictures.clean()}
    assert shapes == {(3, 48, 48)}


def test_weights_and_names_that_do_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_weights(MODEL.model, path, CLASSES)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"--checkpoint is .*own.safetensors; it goes with the name of a timm"
    ):
        load_predictor(path, "cpu", checkpoint=path)
    with pytest.raises(InputError, match=r"no trained model; .*, or did you mean timm's resnet50\?"):
        load_predictor("resnet_50", "cpu")
    with pytest.raises(
        InputError, match=r"weights of resnet8_16 cannot be had: .*; give them with --checkpoint"
    ):
        load_predictor("resnet8_16", "cpu")


def test_one_sequence_at_a_time_is_the_same_as_many(data: Path) -> None:
    """Whole pictures come one by one, others by eight."""
    found = scene(MODEL, data).pictures
    clean = pixels(found.clean())
    frames = torch.cat(list(found.perturbed("snow")))
    alone = [sequence(image[None], "snow", seed=0, rows=np.array([row])) for row, image in enumerate(clean)]
    assert torch.equal(frames, torch.cat(alone))
