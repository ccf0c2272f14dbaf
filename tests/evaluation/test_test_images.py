"""Test images: views of the published protocols and the model's own, and copies of them on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import imagenet_like
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, InterpolationMode, Resize
from torchvision.transforms import functional as pillow

from noisystudent.console import Progress
from noisystudent.errors import InputError, Stopped
from noisystudent.evaluation import copies, published, test_images
from noisystudent.evaluation.measure import measure
from noisystudent.evaluation.options import Options
from noisystudent.evaluation.test_images import OpenedImages, open_test_images
from noisystudent.inference.images import open_labeled, scanned
from noisystudent.inference.load import load_predictor
from noisystudent.inference.predictor import Predictor
from noisystudent.models import save_weights
from noisystudent.robustness.corruptions import corrupt
from noisystudent.robustness.perturbations import sequence

CLASSES = tuple("abc")
MODEL = imagenet_like.predictor(classes=CLASSES)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return imagenet_like.write_images(tmp_path / "images", CLASSES)


def opened(model: Predictor, data: Path, **options: object) -> OpenedImages:
    """Test images whose scan is gone: only those that are kept in memory can be read."""
    with open_test_images(model, data, Options(**options), Progress()) as found:  # type: ignore[arg-type]
        list(found.images.clean())
        list(found.images.corrupted("contrast", 1))
    return found


def pixels(batches: Iterable[tuple[Tensor, np.ndarray]]) -> Tensor:
    return torch.cat([images for images, _ in batches])


# --- ImageNet-C's and -P's own views ---


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (256, 256), (231, 500)])
def test_sources_are_cut_as_the_published_sets_were(size: tuple[int, int]) -> None:
    """Resize(256), CenterCrop(224); at 299 the middle 0.875 of each side; 32 and 64 are resized and cut."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    for side, wide in ((224, 256), (64, 64), (32, 32)):
        expected = np.array(CenterCrop(side)(Resize(wide)(image)))
        assert np.array_equal(test_images._cut(image, side).permute(1, 2, 0).numpy(), expected)
    inner = CenterCrop([int(0.875 * length) for length in size])(image)
    expected = np.array(inner.resize((299, 299), Image.Resampling.BILINEAR))
    assert np.array_equal(test_images._cut(image, 299).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("size", [(1, 41), (40, 1), (7, 301), (400, 13), (3, 50)])
def test_the_ends_of_a_long_image_are_cut_off_and_its_middle_stays(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    short = test_images._shortened(image, 256)
    assert min(short.shape[1:]) == 256 and 2048 <= max(short.shape[1:]) < 2052
    expected = np.array(CenterCrop(1024)(Resize(256)(image)))
    middle = np.array(CenterCrop(1024)(Image.fromarray(short.permute(1, 2, 0).numpy())))
    assert np.abs(middle - expected.astype(int)).max() <= 1, "the edges of the box are rounded"


@pytest.mark.parametrize(("height", "width"), [(300, 420), (420, 300)])
def test_geometry_moves_the_whole_picture_before_the_crop(height: int, width: int, tmp_path: Path) -> None:
    """Not its middle square: a rotated, tilted or shrunken landscape has its sides to show."""
    model = imagenet_like.predictor(224, CLASSES)
    data = imagenet_like.write_images(tmp_path, CLASSES[:2], each=1, size=(height, width))
    with open_test_images(model, data, Options(tests=("p",)), Progress()) as found:
        rotated, shrunken = (torch.cat(list(found.images.perturbed(name))) for name in ("rotate", "scale"))
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


def test_stored_squares_change_no_perturbation(tmp_path: Path) -> None:
    """The surroundings of a stored square are read from its file; below 224 pixels none move in."""
    data = imagenet_like.write_images(tmp_path, CLASSES[:2], each=1, size=(300, 420))
    for side in (224, 32):
        model = imagenet_like.predictor(side, CLASSES)
        frames: list[Tensor] = []
        for stored in (None, side):
            with scanned(open_labeled(data), None, Progress(), stored=stored) as (images, _):
                assert images.resident == (stored is not None)
                made = test_images.generate(model, images, np.arange(2), Options(), None)
                frames.append(torch.cat(list(made.perturbed("tilt"))))
        assert torch.equal(*frames)


# --- options ---


def test_an_image_has_its_own_chance_in_a_sample_too(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = opened(MODEL, data).images
    monkeypatch.setattr(test_images, "FAST_IMAGES", 5)
    few = opened(MODEL, data, fast=True)
    clean = {image.numpy().tobytes(): row for row, image in enumerate(pixels(whole.clean()))}
    rows = [clean[image.numpy().tobytes()] for image in pixels(few.images.clean())]
    assert len(rows) == 5 and rows != list(range(5))
    noisy = pixels(few.images.corrupted("gaussian_noise", 3))
    assert torch.equal(noisy, pixels(whole.corrupted("gaussian_noise", 3))[rows])
    assert few.notes["c"].endswith("5 images, severities 1, 3, 5 only")


def test_jpeg_is_saved_where_the_options_have_it(data: Path) -> None:
    plain, saved = opened(MODEL, data), opened(MODEL, data, jpeg=True)
    clean, rows = pixels(plain.images.clean()), np.arange(9)
    assert torch.equal(pixels(saved.images.clean()), clean)
    for found, jpeg in ((plain, False), (saved, True)):
        expected = corrupt(clean, "fog", 2, seed=0, rows=rows, jpeg=jpeg)
        assert torch.equal(pixels(found.images.corrupted("fog", 2)), expected)
        assert ("saved as JPEG 85" if jpeg else "no JPEG") in found.notes["c"]


def test_copies_of_another_size_are_made_there_and_resized(data: Path) -> None:
    model = imagenet_like.predictor(48, CLASSES)
    found = opened(model, data, source_size=32)
    sources = [test_images._cut(Image.open(path).convert("RGB"), 32) for path in sorted(data.glob("*/*"))]
    made = corrupt(torch.stack(sources), "impulse_noise", 5, seed=0, rows=np.arange(9))
    assert torch.equal(pixels(found.images.corrupted("impulse_noise", 5)), published.fit(made, model))
    assert pixels(found.images.clean()).shape[-1] == 48
    assert "regenerated at 32 pixels, constants of 32, resized to 48, no JPEG" in found.notes["c"]
    frames = next(iter(found.images.perturbed("translate")))
    moved = sequence(torch.stack(sources[:8]), "translate", seed=0, rows=np.arange(8))
    assert torch.equal(frames, published.fit(moved.flatten(0, 1), model).unflatten(0, moved.shape[:2]))


def test_the_nearest_constants_are_noted(data: Path) -> None:
    note = opened(imagenet_like.predictor(48, CLASSES), data).notes["c"]
    assert note.startswith("ImageNet-C protocol, regenerated at 48 pixels, constants of 32, no JPEG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tests": ("c",), "source_size": 100}, "--source-size is 100; choose one of 32, 64, 224, 299"),
        (
            {"tests": ("clean",), "write": Path("copies")},
            "--write writes the corrupted images of the test c; add c",
        ),
        ({"tests": ("clean", "a")}, "--tests has a, which needs a model of ImageNet's 1000 classes"),
        ({"tests": ()}, "--tests names no test; choose one or more of clean, calibration"),
        ({"tests": ("clean", "gausian_noise")}, "--tests has 'gausian_noise'; choose one or more of clean"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_measured(
    data: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        next(measure(MODEL, data, Options(**options)))  # type: ignore[arg-type]


def test_fewer_than_two_classes(tmp_path: Path) -> None:
    one = imagenet_like.write_images(tmp_path, CLASSES[:1])
    with pytest.raises(InputError, match="has images of one class only; a test needs at least two classes"):
        next(measure(MODEL, one, Options()))
    with pytest.raises(InputError, match="has 1 class; a test needs a model with at least two"):
        next(measure(imagenet_like.predictor(classes=CLASSES[:1]), one, Options()))


# --- copies on disk ---


def test_arrays_are_written_measured_and_read_back(data: Path, tmp_path: Path) -> None:
    shown = imagenet_like.measured(MODEL, data, tests=("clean", "c"))
    out = tmp_path / "copies"
    written = imagenet_like.measured(MODEL, data, tests=("clean", "c"), write=out)
    again = imagenet_like.measured(MODEL, out, tests=("c",))
    for key, row in written.items():
        assert row.value == shown[key].value and (key[0] != "c" or again[key].value == row.value)
    assert np.load(out / "fog.npy").shape == (45, 32, 32, 3)
    assert f"written to {out}" in written["c", "mean error"].note
    assert again["c", "mean error"].note == f"ImageNet-C protocol, regenerated, in {out}"
    with pytest.raises(InputError, match="was written for other classes than the model's"):
        imagenet_like.measured(imagenet_like.predictor(classes=("a", "c", "b")), out, tests=("c",))
    with pytest.raises(InputError, match="holds corrupted images already"):
        imagenet_like.measured(MODEL, out, tests=("c",), write=tmp_path / "more")


def test_extra_corruptions_are_measured_and_not_written(data: Path, tmp_path: Path) -> None:
    shown = imagenet_like.measured(MODEL, data, tests=("c-extra",))
    written = imagenet_like.measured(MODEL, data, tests=("c", "c-extra"), write=tmp_path / "copies")
    assert all(written[key].value == row.value for key, row in shown.items())
    assert not (tmp_path / "copies" / "spatter.npy").exists()


def test_folders_are_written_as_imagenet_c_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JPEG of quality 85, under the names of the originals, numbered where two have one."""
    monkeypatch.setattr(copies, "_LARGE", 32)
    (data / "a" / "0.bmp").write_bytes(b"")
    Image.open(data / "a" / "1.png").rotate(90).save(data / "a" / "0.bmp")
    out = tmp_path / "copies"
    written = imagenet_like.measured(MODEL, data, tests=("c",), write=out)
    saved = imagenet_like.measured(MODEL, data, tests=("c",), jpeg=True)
    names = {path.name for path in (out / "fog" / "2" / "a").iterdir()}
    assert names == {"0-000000.JPEG", "0-000001.JPEG", "1.JPEG", "2.JPEG"}
    assert {key: row.value for key, row in written.items()} == {key: row.value for key, row in saved.items()}
    assert "saved as JPEG 85" in written["c", "mean error"].note


def test_writing_goes_on_where_it_was_stopped(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "copies"

    class StoppedLater(Progress):
        """A signal comes while the fourth corruption is written."""

        def check(self) -> None:
            self.stop.signal = "SIGTERM" if (out / "impulse_noise.npy").is_file() else None
            super().check()

    with pytest.raises(Stopped, match="run the same command again to resume"):
        list(measure(MODEL, data, Options(tests=("c",), write=out), progress=StoppedLater()))
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    assert {"gaussian_noise.npy", "impulse_noise.npy"} < before.keys() and "fog.npy" not in before
    imagenet_like.measured(MODEL, data, tests=("c",), write=out)
    assert (out / "gaussian_noise.npy").stat().st_mtime_ns == before["gaussian_noise.npy"]


def test_copies_of_two_sets_never_meet(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "copies"
    imagenet_like.measured(MODEL, data, tests=("c",), write=out)
    for options in ({"seed": 1}, {"jpeg": True}, {"source_size": 32}):
        with pytest.raises(InputError, match="holds corrupted images of other originals or options"):
            imagenet_like.measured(MODEL, data, tests=("c",), write=out, **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    for folder, message in (
        (tmp_path / "full", "holds something else"),
        (tmp_path / "full" / "mine.txt", "holds something else"),
        (tmp_path / "full" / "mine.txt" / "in", "cannot be written: Not a directory"),
    ):
        with pytest.raises(InputError, match=message):
            imagenet_like.measured(MODEL, data, tests=("c",), write=folder)
    assert json.loads((out / "about.json").read_text())["classes"] == list(CLASSES)


# --- which model ---


def test_another_size_is_that_of_the_models_images(tmp_path: Path, data: Path) -> None:
    own = imagenet_like.predictor(32, CLASSES)
    path = tmp_path / "own.safetensors"
    save_weights(own.model, path, CLASSES)  # type: ignore[arg-type]
    larger = load_predictor(path, "cpu", size=48)
    assert larger.model.resolution == 48
    shapes = {tuple(images.shape[1:]) for images, _ in opened(larger, data).images.clean()}
    assert shapes == {(3, 48, 48)}


def test_weights_and_names_that_do_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_weights(MODEL.model, path, CLASSES)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"--checkpoint is .*own.safetensors; it needs the name of a timm"):
        load_predictor(path, "cpu", checkpoint=path)
    with pytest.raises(InputError, match=r"holds no trained model; .* timm model; did you mean 'resnet50'\?"):
        load_predictor("resnet_50", "cpu")
    with pytest.raises(
        InputError, match=r"weights of resnet8_16 cannot be loaded: .*; `evaluate` takes a file with --checkp"
    ):
        load_predictor("resnet8_16", "cpu")


def test_one_sequence_at_a_time_is_the_same_as_many(data: Path) -> None:
    """Whole pictures come one by one, others by eight."""
    found = opened(MODEL, data).images
    clean = pixels(found.clean())
    frames = torch.cat(list(found.perturbed("snow")))
    alone = [sequence(image[None], "snow", seed=0, rows=np.array([row])) for row, image in enumerate(clean)]
    assert torch.equal(frames, torch.cat(alone))
