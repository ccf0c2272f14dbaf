"""Laws of the corruptions: the same chance gives the same pixels, chance is fair, and errors help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from corruption_reference import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torch import Tensor

from noisystudent.errors import InputError
from noisystudent.robustness.corruptions import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    SIDES,
    Frost,
    corrupt,
    find_frost,
    kernels,
    nearest_side,
    weather,
)
from noisystudent.robustness.corruptions.draws import Draws, draws_of
from noisystudent.robustness.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from noisystudent.robustness.corruptions.table import constants

EVERY = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def frost() -> Frost:
    """Five random images with the sizes of the photographs of frost."""
    sizes = [(600, 900), (315, 560), (315, 560), (350, 527), (495, 660)]
    rng = np.random.default_rng(0)
    photographs = [torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8)) for size in sizes]
    return Frost(tuple(photographs), "a test")


def one(images: Tensor, name: str, severity: int, frost: Frost, **options: object) -> Tensor:
    rows = options.pop("rows", np.arange(len(images)))
    return corrupt(images, name, severity, seed=3, rows=rows, frost=frost, **options)  # type: ignore[arg-type]


def chance(count: int = 1) -> Draws:
    return draws_of(0, "test", 0, np.arange(count), CPU)


@pytest.mark.parametrize("name", EVERY)
def test_pixels_do_not_depend_on_the_batch(name: str, frost: Frost) -> None:
    """Alone, among others, in another order, in another memory layout: an image's row decides."""
    images, rows = noise(90, 32), np.arange(90) * 7  # 90: more than one block
    together = one(images, name, 4, frost, rows=rows)
    assert together.dtype == torch.uint8 and together.shape == images.shape
    order = np.random.default_rng(0).permutation(90)
    shuffled = one(
        images[order].contiguous(memory_format=torch.channels_last), name, 4, frost, rows=rows[order]
    )
    assert torch.equal(shuffled, together[order])
    for row in (0, 89):
        assert torch.equal(
            one(images[row : row + 1], name, 4, frost, rows=rows[row : row + 1])[0], together[row]
        )


@pytest.mark.parametrize("name", EVERY)
def test_seed_severity_and_row_decide(name: str, frost: Frost) -> None:
    images = noise(1, 32).expand(6, -1, -1, -1).clone()
    before = images.clone()
    many = one(images, name, 3, frost)
    assert torch.equal(images, before)
    drawn = len({picture.numpy().tobytes() for picture in many})
    settled = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    assert (drawn == 1) == (name in settled | {"gaussian_blur", "saturate"})
    other = corrupt(images, name, 3, seed=4, rows=np.arange(6), frost=frost)
    assert torch.equal(other, many) == (drawn == 1)
    assert not torch.equal(one(images, name, 4, frost), many)


@pytest.mark.parametrize("name", EVERY)
def test_stronger_is_further_from_the_image(name: str, frost: Frost) -> None:
    """Severities 1, 3 and 5, in mean squared distance: with the constants of 224 pixels."""
    images = noise(24, 64)
    found = [one(images, name, severity, frost, constants_of=224) for severity in (1, 3, 5)]
    far = [float((picture.float() - images).square().mean()) for picture in found]
    if name in (
        "glass_blur",
        "elastic_transform",
        "saturate",
        "spatter",
    ):  # not more, but other
        assert min(far) > 0
    else:
        assert far == sorted(far) and far[0] > 0


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 70), st.sampled_from(EVERY), st.integers(1, 5), st.sampled_from((0, 255, None)))
def test_any_size_and_any_image(side: int, name: str, severity: int, level: int | None) -> None:
    """Also flat black and flat white, where contrast, drops of water and hue have nothing to hold on to."""
    images = noise(2, side) if level is None else torch.full((2, 3, side, side), level, dtype=torch.uint8)
    pictures = Frost(tuple(noise(1, 90)[0] for _ in range(5)), "a test")
    found = one(images, name, severity, pictures)
    assert found.dtype == torch.uint8 and found.shape == images.shape


def test_an_empty_batch_stays_empty(frost: Frost) -> None:
    assert one(torch.zeros(0, 3, 32, 32, dtype=torch.uint8), "fog", 1, frost).shape == (0, 3, 32, 32)


def test_the_constants_of_the_nearest_side_are_used(frost: Frost) -> None:
    assert [nearest_side(side) for side in (8, 32, 48, 49, 144, 145, 224, 261, 262, 800)] == [
        32, 32, 32, 64, 64, 224, 224, 224, 299, 299,
    ]  # fmt: skip
    images = noise(2, 40)
    assert torch.equal(one(images, "contrast", 2, frost), one(images, "contrast", 2, frost, constants_of=32))
    assert not torch.equal(
        one(images, "contrast", 2, frost), one(images, "contrast", 2, frost, constants_of=64)
    )


def test_every_cell_has_constants() -> None:
    counts = {name: {len(constants(name, s, of)) for s in range(1, 6) for of in SIDES} for name in EVERY}
    assert all(len(lengths) == 1 for lengths in counts.values()), counts
    assert constants("elastic_transform", 1, 224) == pytest.approx((488, 170.8, 24.4))  # 244, as published
    assert constants("saturate", 5, 64) == (30, 0.2) and constants("saturate", 5, 299) == (20, 0.2)
    assert constants("zoom_blur", 1, 64) == (1.06, 0.01) and constants("zoom_blur", 1, 299) == (1.11, 0.01)


def test_chance_is_fair() -> None:
    draws = chance(4)
    normal = draws.normal(0, 3, 2**17).double().flatten()
    moments = [float((normal**power).mean()) for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.04)
    assert stats.kstest(normal.numpy(), "norm").statistic < 0.001
    uniform = draws.uniform(1, 2**19).flatten().double()
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1
    assert stats.kstest(uniform.numpy(), "uniform").statistic < 0.001
    dice = torch.bincount(draws.below(2, 6, 2**18).flatten(), minlength=6)
    assert stats.chisquare(dice.numpy()).pvalue > 1e-4
    between = np.corrcoef(draws.normal(0, 2**16).numpy()) - np.eye(4)  # images and fields are independent
    fields = np.corrcoef([draws.normal(field, 2**16)[0].numpy() for field in range(4)]) - np.eye(4)
    assert max(np.abs(between).max(), np.abs(fields).max()) < 0.02


@pytest.mark.parametrize("photons", [3, 60, 700])
def test_photons_are_poisson(photons: int) -> None:
    level = 180
    images = torch.full((8, 3, 128, 128), level, dtype=torch.uint8)
    counts = shot_noise(images, chance(8), photons).mul(photons / 255).round().long().flatten()
    expected = stats.poisson(photons * level / 255)
    assert float(counts.double().mean()) == pytest.approx(expected.mean(), rel=0.005)
    assert float(counts.double().var()) == pytest.approx(expected.var(), rel=0.02)
    assert stats.kstest(counts.numpy(), expected.cdf).statistic < expected.pmf(int(expected.mean())) + 0.004


def test_impulses_hit_channels_one_by_one() -> None:
    """13.5 % black and 13.5 % white at an amount of 0.27, not whole pixels."""
    images = torch.full((8, 3, 64, 64), 100, dtype=torch.uint8)
    found = impulse_noise(images, chance(8), 0.27)
    shares = [float((found == level).float().mean()) for level in (0, 255, 100)]
    assert shares == pytest.approx([0.135, 0.135, 0.73], abs=0.005)
    whole = (found != 100).all(1).float().mean()
    assert float(whole) == pytest.approx(0.27**3, abs=0.005)


def test_gaussian_noise_has_its_deviation() -> None:
    images = torch.full((4, 3, 64, 64), 100, dtype=torch.uint8)
    assert float(gaussian_noise(images, chance(4), 0.1).std()) == pytest.approx(25.5, rel=0.01)


def test_frost_is_a_crop_of_one_of_five_photographs(frost: Frost) -> None:
    """With one grey level in each photograph, the result shows which was used; all occur at each size."""
    flat = Frost(tuple(torch.full_like(photo, 50 * n) for n, photo in enumerate(frost.photographs)), "a test")
    images = torch.full((60, 3, 32, 32), 100, dtype=torch.uint8)
    for of, share, ice in ((32, 0.75, 0.45), (224, 0.6, 0.75)):
        found = one(images, "frost", 5, flat, constants_of=of)
        levels = {int(share * 100 + ice * 50 * n) for n in range(5)}
        assert {int(level) for level in found.unique()} == levels
    draws = chance(8)
    pixels, widths, heights, starts = frost.scaled(1, 32, CPU)
    crops = weather.frost(noise(8, 32) * 0, draws, 1, 1, 1, photographs=frost)
    windows = [photo.unfold(1, 32, 1).unfold(2, 32, 1)[0, :, :, 0, 0] for photo in frost.photographs]
    for crop, which in zip(crops, draws.below(0, 5).tolist(), strict=True):
        assert torch.equal(pixels[:, starts[which]], frost.photographs[which][:, 0, 0])
        assert (int(heights[which]), int(widths[which])) == tuple(frost.photographs[which].shape[1:])
        rows, columns = torch.nonzero(windows[which] == crop[0, 0, 0].to(torch.uint8), as_tuple=True)
        photo = frost.photographs[which]
        assert any(
            torch.equal(photo[:, row : row + 32, at : at + 32].float(), crop)
            for row, at in zip(rows.tolist(), columns.tolist(), strict=True)
        )
    assert one(noise(1, 400), "frost", 1, frost).shape == (1, 3, 400, 400)  # larger than two of them


def test_frost_is_found_in_a_folder(tmp_path: Path) -> None:
    for name in ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg"):
        Image.new("RGB", (60, 50), (200, 220, 240)).save(tmp_path / name)
    found = find_frost(tmp_path)
    assert found is not None and len(found.photographs) == 5 and found.photographs[0].shape == (3, 50, 60)
    (tmp_path / "frost4.jpg").unlink()
    with pytest.raises(InputError, match=r"frost4\.jpg"):
        find_frost(tmp_path)


def test_without_photographs_there_is_no_frost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noisystudent.robustness.corruptions.frost._PACKAGE", "no_such_package_of_frost")
    assert find_frost() is None
    with pytest.raises(InputError, match="mCE-14"):
        corrupt(noise(1, 32), "frost", 1, seed=0, rows=np.arange(1))


def test_grey_levels_are_cut_off_not_rounded() -> None:
    pixels = torch.tensor([-3.0, 0.0, 0.9, 99.99999, 100.0, 254.99, 255.0, 300.0])
    assert kernels.quantize(pixels).tolist() == [0, 0, 0, 100, 100, 254, 255, 255]


WRONG: list[tuple[dict[str, object], str]] = [
    ({"name": "guassian_noise"}, "did you mean 'gaussian_noise'"),
    ({"name": "blur of some kind"}, "choose one of gaussian_noise, shot_noise"),
    ({"severity": 0}, "one of 1, 2, 3, 4, 5"),
    ({"severity": 6}, "one of 1, 2, 3, 4, 5"),
    ({"constants_of": 128}, "32, 64, 224, 299"),
    ({"images": torch.zeros(2, 3, 32, 32)}, "uint8"),
    ({"images": torch.zeros(2, 3, 32, 30, dtype=torch.uint8)}, "B, 3, S, S"),
    ({"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, "at least 8"),
    ({"rows": np.arange(3)}, "row numbers"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_call_says_what_is_right(change: dict[str, object], message: str) -> None:
    call = {"images": noise(2, 32), "name": "contrast", "severity": 1, "seed": 0, "rows": np.arange(2)}
    with pytest.raises(InputError, match=message):
        corrupt(**call | change)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", EVERY)
def test_a_gpu_gives_the_same_pixels(name: str, frost: Frost) -> None:
    for side in (32, 224):
        images = noise(3, side)
        here, there = (one(images.to(device), name, 5, frost).cpu().int() for device in ("cpu", "cuda"))
        far = (here - there).abs()
        assert int(far.max()) <= 1 and float((far > 0).double().mean()) < 0.001
