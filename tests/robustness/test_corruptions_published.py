"""The published definitions, plainly written, give what the batched corruptions give."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from corruption_reference import elastic, noise, plasma, shuffled, streaked, zoomed
from PIL import Image
from scipy import ndimage
from torch import Tensor

from noisystudent.robustness.corruptions import blur, corrupt, digital, kernels, nearest_side, weather
from noisystudent.robustness.corruptions.draws import Draws, draws_of
from noisystudent.robustness.corruptions.table import constants


def one(images: Tensor, name: str, severity: int, *, jpeg: bool = False) -> Tensor:
    return corrupt(images, name, severity, seed=3, rows=np.arange(len(images)), jpeg=jpeg)


def chance(count: int = 1) -> Draws:
    return draws_of(0, "test", 0, np.arange(count), torch.device("cpu"))


@pytest.mark.parametrize(("delta", "rounds"), [(1, 2), (3, 1), (4, 3)])
def test_glass_copies_as_the_published_loop_does(delta: int, rounds: int) -> None:
    side = 24
    image = noise(1, side)
    moves = chance().below(0, 2 * delta, rounds, 2, side, side).sub(delta)
    source = torch.arange(side * side)[None]
    for across, down in moves[0]:
        source = source.gather(1, blur.shuffle(across[None], down[None], delta))
    found = image.flatten(2)[0, :, source[0]].view(3, side, side)
    expected = shuffled(image[0].permute(1, 2, 0).numpy(), moves[0].numpy(), delta)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_glass_is_blur_copies_blur() -> None:
    images, draws = noise(2, 32), chance(2)
    moves = draws.below(0, 4, 1, 2, 32, 32).sub(2)
    found = blur.glass_blur(images, draws, 0.9, 2, 1)
    for image, move, result in zip(images, moves, found, strict=True):
        pixels = image.permute(1, 2, 0).double().numpy() / 255
        smooth = ndimage.gaussian_filter(pixels, (0.9, 0.9, 0), mode="nearest", truncate=4)
        copied = shuffled((smooth * 255).astype(np.uint8), move.numpy(), 2)
        again = ndimage.gaussian_filter(copied / 255, (0.9, 0.9, 0), mode="nearest", truncate=4) * 255
        far = np.abs(result.permute(1, 2, 0).numpy() - again)
        assert far.mean() < 0.05 and far.max() < 1.01  # a level that rounding left below itself is cut off


@pytest.mark.parametrize(("radius", "sigma", "angle"), [(10, 3, 30.0), (6, 1, -45.0), (9, 2.5, -117.3)])
def test_motion_is_imagemagicks(radius: float, sigma: float, angle: float) -> None:
    images = noise(1, 32)
    found = kernels.streak(images, radius, sigma, np.array([angle]))[0]
    for plane, result in zip(images[0], found, strict=True):
        assert np.abs(streaked(plane.double().numpy(), radius, sigma, angle) - result.numpy()).max() < 1e-3


def test_v15_trails_and_disks() -> None:
    weights, columns, rows = kernels.trail(10, 3, np.array([30.0, -45.0]))
    assert len(weights) == 21 and weights.sum() == pytest.approx(1)
    expected = [0.23474496, 0.22205922, 0.18796907, 0.14238001, 0.09650654, 0.05853417]
    assert weights[:6] == pytest.approx(expected, abs=5e-9)
    offsets = np.stack([columns, rows], axis=-1)
    assert offsets[0, ::4].tolist() == [[0, 0], [3, 2], [7, 4], [10, 6], [14, 8], [17, 10]]
    diagonal = [[0, 0], [1, -1], [1, -1], [2, -2], [3, -3], [4, -4], [4, -4], [5, -5], [6, -6]]
    assert offsets[1, :9].tolist() == diagonal
    middles = {(3, 0.1): 0.034483, (10, 0.5): 0.003155, (0.3, 0.4): 0.844973, (0.5, 0.6): 0.445213}
    for (radius, sigma), middle in (middles | {(1, 0.2): 0.2, (1.5, 0.1): 0.111111}).items():
        kernel = kernels.disk(radius, sigma)
        assert float(kernel[len(kernel) // 2, len(kernel) // 2]) == pytest.approx(middle, abs=6e-7)
        assert float(kernel.sum()) == pytest.approx(1.010786 if radius == 10 else 1, abs=6e-7)
    assert int((kernels.disk(3, 0.1) > 1e-9).sum()) == 29 and kernels.disk(10, 0.5).shape == (21, 21)


@pytest.mark.parametrize(
    ("side", "factor"), [(32, 1.0), (32, 1.06), (32, 2.25), (33, 1.75), (224, 1.31), (224, 3)]
)
def test_zooms_are_scipys(side: int, factor: float) -> None:
    plane = noise(1, side)[0, :1].float()
    found = kernels.clipped_zoom(plane[None], factor)[0, 0].numpy()
    assert np.abs(found - zoomed(plane[0].double().numpy(), factor)).max() < 0.01


@pytest.mark.parametrize("border", ["nearest", "reflect"])
@pytest.mark.parametrize(("side", "sigma"), [(32, 0.05), (32, 1.3), (32, 6.4), (16, 30.0)])
def test_gaussians_are_scipys(side: int, sigma: float, border: str) -> None:
    plane = noise(1, side)[0, 0]
    expected = ndimage.gaussian_filter(plane.double().numpy(), sigma, mode=border, truncate=4)
    found = kernels.separable(plane, kernels.gaussian(side, sigma, border=border))
    assert np.abs(found.numpy() - expected).max() < 1e-9
    if border == "nearest":
        assert np.abs(kernels.smooth(plane[None, None], sigma)[0, 0].numpy() - expected).max() < 1e-3


def test_clouds_are_diamond_square() -> None:
    draws = chance(2)
    grain = draws.uniform(0, 32, 32).double().mul(2).sub(1).numpy()
    found = kernels.clouds(draws, 32, 1.75).numpy()
    assert np.abs(found - np.stack([plasma(one, 1.75) for one in grain])).max() < 1e-4
    assert kernels.clouds(draws, 20, 1.75).shape == (2, 20, 20)


def test_fog_and_snow_are_as_published() -> None:
    images, draws = noise(2, 32), chance(2)
    cloud = kernels.clouds(draws, 32, 2.0).double().numpy()
    flakes = weather.snowflakes(draws, 32, 0.25, 0.3, 2.25, 0.6)
    field = draws.normal(0, 1, 32, 32).double().numpy()[:, 0] * 0.3 + 0.25
    angles = draws.uniform(1).double().numpy() * 90 - 135
    fog, snow = (
        weather.fog(images, draws, 1.5, 2.0),
        weather.snow(images, draws, 0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    )
    for row, image in enumerate(images):
        pixels = image.double().numpy() / 255
        misty = (pixels + 1.5 * cloud[row]) * pixels.max() / (pixels.max() + 1.5)
        assert np.abs(fog[row].numpy() - misty * 255).max() < 0.01
        layer = zoomed(field[row], 2.25)
        layer = (np.where(layer < 0.6, 0, layer).clip(0, 1) * 255).astype(np.uint8)
        assert np.abs(layer.astype(int) - flakes[row, 0].int().numpy()).max() <= 1
        fallen = np.rint(streaked(flakes[row, 0].double().numpy(), 12, 6, angles[row])) / 255
        grey = np.tensordot([0.299, 0.587, 0.114], pixels, 1)
        white = 0.85 * pixels + 0.15 * np.maximum(pixels, grey * 1.5 + 0.5)
        assert np.abs(snow[row].numpy() - (white + fallen + np.rot90(fallen, 2)) * 255).max() < 1.01


@pytest.mark.parametrize("severity", [1, 2, 3, 5])
def test_elastic_is_as_published(severity: int) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    images, draws = noise(2, 32), chance(2)
    strength, sigma, reach = constants("elastic_transform", severity, 32)
    moves = draws.uniform(0, 3, 2).double().mul(2).sub(1).mul(reach).numpy()
    field = draws.uniform(1, 2, 32, 32).double().mul(2).sub(1).numpy()
    found = digital.elastic_transform(images, draws, strength, sigma, reach)
    for row, image in enumerate(images):
        expected = elastic(image.permute(1, 2, 0).double().numpy(), moves[row], field[row], strength, sigma)
        far = np.abs(found[row].permute(1, 2, 0).numpy() - expected)
        assert far.mean() < 0.5 and np.quantile(far, 0.99) < 4  # OpenCV may round places to 1/32 of a pixel


@pytest.mark.parametrize("side", [32, 64, 100, 224])
def test_pixelate_is_pillows(side: int) -> None:
    images = noise(1, side)
    for severity in range(1, 6):
        small = int(side * constants("pixelate", severity, nearest_side(side))[0])
        image = Image.fromarray(images[0].permute(1, 2, 0).numpy())
        image = image.resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX)
        found = one(images, "pixelate", severity)[0].permute(1, 2, 0).numpy()
        assert np.array_equal(found, np.array(image))


def test_jpeg_is_saved_last() -> None:
    images = noise(3, 32)
    plain, saved = one(images, "contrast", 1), one(images, "contrast", 1, jpeg=True)
    for before, after in zip(plain, saved, strict=True):
        file = io.BytesIO()
        Image.fromarray(before.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=85, optimize=True)
        assert np.array_equal(after.permute(1, 2, 0).numpy(), np.array(Image.open(file)))


def test_brightness_and_saturation_are_hsv() -> None:
    import colorsys

    image = noise(1, 16, seed=2)
    image[0, :, 0, :4] = torch.tensor(
        [0, 90, 255, 1], dtype=torch.uint8
    )  # grey has no hue: red, by convention
    brighter = weather.brightness(image, chance(), 0.2)[0]
    richer = digital.saturate(image, chance(), 2, 0.1)[0]
    for row, at in np.ndindex(16, 16):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[0, :, row, at].double() / 255).tolist())
        light = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.2))
        rich = colorsys.hsv_to_rgb(hue, min(1, saturation * 2 + 0.1), value)
        assert (brighter[:, row, at] / 255).tolist() == pytest.approx(light, abs=1e-9)
        assert (richer[:, row, at] / 255).tolist() == pytest.approx(rich, abs=1e-9)
