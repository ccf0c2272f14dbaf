"""Sequences: geometry is Pillow's and OpenCV's, chance is the row's, frames are the published ones."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from corruption_reference import noise, streaked
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pillow

from noisystudent.errors import InputError
from noisystudent.robustness.corruptions import kernels, nearest_side, weather
from noisystudent.robustness.corruptions.draws import draws_of
from noisystudent.robustness.perturbations import (
    EXTRA_PERTURBATIONS,
    PERTURBATIONS,
    geometry,
    sequence,
)

EVERY = (*PERTURBATIONS, *EXTRA_PERTURBATIONS)
DRAWN = ("gaussian_noise", "shot_noise", "snow", "speckle_noise", "spatter")


def length(name: str, side: int) -> int:
    """Published number of frames of a sequence of images of `side` pixels."""
    lengths = {"translate": {32: 16, 64: 31, 224: 41, 299: 41}, "motion_blur": {32: 21}}
    return lengths.get(name, {}).get(nearest_side(side), 31)


def one(images: Tensor, name: str, *, crop: int | None = None, seed: int = 0) -> Tensor:
    return sequence(images, name, seed=seed, rows=np.arange(len(images)), crop=crop)


@pytest.mark.parametrize("name", EVERY)
def test_frames_do_not_depend_on_the_batch(name: str) -> None:
    images, rows = noise(4, 32), np.array([7, 5, 300, 2])
    before = images.clone()
    together = sequence(images, name, seed=1, rows=rows)
    assert together.shape == (4, length(name, 32), 3, 32, 32) and together.dtype == torch.uint8
    for row in (0, 3):
        alone = sequence(images[row : row + 1], name, seed=1, rows=rows[row : row + 1])
        assert torch.equal(alone[0], together[row])
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", EVERY)
def test_only_noise_and_weather_are_left_to_chance(name: str) -> None:
    images = noise(1, 32).expand(2, -1, -1, -1)
    found = one(images, name)
    assert torch.equal(found[0], found[1]) == (name not in DRAWN)
    assert torch.equal(found, one(images, name, seed=1)) == (name not in DRAWN)


@settings(max_examples=20, deadline=None)
@given(st.integers(8, 60), st.integers(0, 9), st.integers(0, 9), st.sampled_from(EVERY))
def test_any_size_and_crop(crop: int, higher: int, wider: int, name: str) -> None:
    images = torch.full((1, 3, crop + higher, crop + wider), 255, dtype=torch.uint8)
    assert one(images, name, crop=crop).shape == (1, length(name, crop), 3, crop, crop)


def test_lengths_are_the_published_ones() -> None:
    for name, side in [*product(EVERY, (32, 64, 224)), ("translate", 299)]:
        assert one(noise(1, side), name).shape == (1, length(name, side), 3, side, side)


@pytest.mark.parametrize(
    "change",
    [{"angle": 7.0}, {"angle": -15.0}, {"scale": 0.4}, {"scale": 1.15}, {"shear": 9.0}, {"shift": -5.0}],
    ids=str,
)
@pytest.mark.parametrize(("height", "width", "crop"), [(64, 64, 64), (64, 64, 56), (50, 71, 45)])
def test_affine_maps_are_pillows(change: dict[str, float], height: int, width: int, crop: int) -> None:
    image = noise(1, 72)[..., :height, :width].contiguous()
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    moved = pillow.affine(
        picture,
        angle=change.get("angle", 0),
        translate=[int(change.get("shift", 0)), 0],
        scale=change.get("scale", 1.0),
        shear=[change.get("shear", 0.0), 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    expected = np.array(pillow.center_crop(moved, [crop, crop]))
    found = geometry.warp_affine(image, geometry.affine((height, width), **change), crop)
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("degrees", [-15, 0, 7.5])
def test_tilts_are_opencvs(degrees: float) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    image = noise(1, 72)[..., :64, :].contiguous()
    matrix = geometry.tilt((64, 72), degrees)
    expected = cv2.warpPerspective(image[0].permute(1, 2, 0).numpy(), matrix, (72, 64))[4:60, 8:64]
    far = (geometry.warp_tilt(image, matrix, 56)[0].permute(1, 2, 0).int() - torch.from_numpy(expected)).abs()
    assert float(far.double().mean()) < 0.3 and int(far.max()) <= 8  # OpenCV may round to 1/32 of a pixel


def test_v14_tilt_matrices() -> None:
    def scaled(height: int, width: int, degrees: float) -> list[list[float]]:
        matrix = geometry.tilt((height, width), degrees)
        rows: list[list[float]] = (matrix / matrix[2, 2]).tolist()
        return rows

    expected = [[1.185165286, 0.077970125, -1.959626183], [0.033448133, 1.18666346, -1.267007617]]
    assert scaled(32, 32, 11.25)[:2] == [pytest.approx(row, abs=1e-9) for row in expected]
    assert scaled(32, 32, 11.25)[2] == pytest.approx([0.004779497, 0.004873133, 1], abs=1e-9)
    still = [[0.978380638, 0, 0.345909792], [0, 0.978380638, 0.345909792], [0, 0, 1]]
    assert scaled(32, 32, 0) == [pytest.approx(row, abs=1e-9) for row in still]
    wide = [[0.735409068, -0.085584452, 29.32683509], [-0.122868537, 0.749609739, 32.575271613]]
    assert scaled(256, 320, -15)[:2] == [pytest.approx(row, abs=1e-8) for row in wide]
    assert scaled(256, 320, -15)[2] == pytest.approx([-0.000516676, -0.000534903, 1], abs=1e-9)


def test_noise_starts_clean_and_is_fresh_in_every_frame() -> None:
    images = noise(2, 64) // 4 + 96
    level = float(images.float().mean())
    for name, deviation in (("gaussian_noise", 0.025 * 255), ("speckle_noise", 0.05 * level)):
        found = one(images, name)
        assert torch.equal(found[:, 0], images)
        change = found[:, 1:].float() - images[:, None]
        assert float(change.std()) == pytest.approx(deviation, rel=0.05)
        flat = change.flatten(2)[0].double().numpy()
        assert np.abs(np.corrcoef(flat) - np.eye(30)).max() < 0.06
    photons = one(images, "shot_noise")[:, 1:].float() - images[:, None]
    assert float(photons.std()) == pytest.approx(math.sqrt(255 * level / 500), rel=0.05)


def test_translations_are_whole_pixels_and_black_moves_in() -> None:
    image = noise(1, 40) // 2 + 100
    found = one(image, "translate", crop=32)
    assert found.shape[1] == 16
    whole = image[0, :, 4:36]
    assert torch.equal(found[0, 7], whole[..., 4:36])
    assert torch.equal(found[0, 10], whole[..., 1:33])  # the margin moves in first
    for frame, seen in ((15, slice(4, 32)), (0, slice(0, 29))):
        shown = found[0, frame]
        source = whole[..., 0:28] if frame == 15 else whole[..., 11:40]
        assert torch.equal(shown[..., seen], source)
        assert int(shown.sum()) == int(source.sum())  # the rest is black


@pytest.mark.parametrize("name", ["rotate", "shear", "brightness", "scale"])
def test_the_frame_of_no_change_is_the_image(name: str) -> None:
    images = noise(2, 224 if name == "scale" else 32)
    still = 24 if name == "scale" else 15  # 0.4 + 24 * 0.025 is 1
    assert torch.equal(one(images, name)[:, still], images)


def test_scale_and_zoom_start_and_grow() -> None:
    white = torch.full((1, 3, 224, 224), 255, dtype=torch.uint8)
    shares = (one(white, "scale") > 0).double().mean((0, 2, 3, 4))
    assert shares[:25].tolist() == pytest.approx([(0.4 + 0.025 * i) ** 2 for i in range(25)], abs=0.01)
    images = noise(1, 64)
    zoom = one(images, "zoom_blur")
    assert torch.equal(zoom[:, 0], images)
    second = geometry.warp_affine(images, geometry.affine((64, 64), scale=1.004), 64)
    assert torch.equal(zoom[:, 1], ((images.int() + second) // 2).to(torch.uint8))


def test_motion_turns_and_snow_falls_from_one_layer() -> None:
    images = noise(1, 32)
    found = one(images, "motion_blur")
    for frame in (0, 7, 20):
        expected = np.rint(streaked(images[0, 0].double().numpy(), 6, 1.8, (frame - 20) * 9.0))
        assert np.abs(found[0, frame, 0].numpy() - expected).max() <= 1
    chance = draws_of(0, "perturbation/snow", 0, np.arange(1), torch.device("cpu"))
    flakes = weather.snowflakes(chance, 32, 0.05, 0.3, 2, 0.5)
    snow = one(images, "snow")
    for frame in (0, 30):
        fallen = weather.snowfall(images, flakes, 10, 2, np.array([frame * 4.0 - 150]), 0.85)
        assert torch.equal(snow[:, frame], kernels.quantize(fallen))


@pytest.mark.parametrize(("side", "drip"), [(32, [0.2, 0.8]), (150, [0.05, 0.1, 0.15, 0.7])])
def test_drops_run_down(side: int, drip: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns under NumPy's convolution, from the layer that the first frame shows."""
    layers: list[Tensor] = []

    def wet(images: Tensor, liquid: Tensor, _: object) -> Tensor:
        layers.append(liquid)
        return images.float()

    monkeypatch.setattr(weather, "wet", wet)
    one(noise(2, side), "spatter")
    assert len(layers) == 31 and float((layers[0] > 0).double().mean()) > 0.01
    for before, after in pairwise(layers):
        expected = np.apply_along_axis(np.convolve, 1, before.numpy(), np.array(drip), mode="same")
        assert np.abs(after.numpy() - expected).max() < 1e-9


def test_blur_grows() -> None:
    images = noise(1, 32)
    found = one(images, "gaussian_blur")
    assert torch.equal(found[:, 30], kernels.quantize(kernels.smooth(images, 0.75, 7)))
    sharpness = (found[0, :, :, 1:].double() - found[0, :, :, :-1].double()).abs().mean((1, 2, 3))
    assert bool((sharpness.diff() <= 1e-9).all()) and float(sharpness[0]) > float(sharpness[-1])


WRONG: list[tuple[dict[str, object], str]] = [
    ({"name": "fog"}, "no perturbation 'fog'"),
    ({"images": torch.zeros(2, 3, 32, 32)}, "uint8"),
    ({"images": torch.zeros(2, 3, 32, 40, dtype=torch.uint8)}, "square crop"),
    ({"crop": 33}, "shorter side"),
    ({"crop": 4}, "from 8"),
    ({"rows": np.arange(3)}, "row numbers"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_call_says_what_is_right(change: dict[str, object], message: str) -> None:
    call = {"images": noise(2, 32), "name": "snow", "seed": 0, "rows": np.arange(2)}
    with pytest.raises(InputError, match=message):
        sequence(**call | change)  # type: ignore[arg-type]
