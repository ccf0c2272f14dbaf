"""Hashes are those of a straight-line DCT, and follow an image that is mirrored, cropped or brighter."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import smooth
from scipy import fft

from noisystudent.data.phash import (
    VARIANTS,
    has_detail,
    hash_variants,
    hashes,
    pictures,
    thumbnail,
    vector_variants,
    vectors,
)

seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, count: int = 3) -> np.ndarray:
    """Thumbnails of smooth images and of noise."""
    noise = np.random.default_rng(seed).integers(20, 236, (count, 32, 32, 3), dtype=np.uint8)
    return np.concatenate([noise, [thumbnail(smooth(96, 96, seed % 1000)) // 2 + 20]])


def differ(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray(np.bitwise_count(one ^ other).sum(axis=-1))


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_a_hash_is_the_signs_of_a_dct(seed: int) -> None:
    thumbnails = drawn(seed)
    order = sorted(((y, x) for y in range(16) for x in range(16)), key=lambda at: (max(at), at))
    for image, found in zip(thumbnails, hashes(thumbnails), strict=True):
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
        waves = fft.dctn(grey, type=2) / (4 * 32 * 32)  # SciPy's has a factor of 2 for each side
        wave = np.array([waves[at] for at in order])
        sure = abs(wave - 0.01) > 0.001  # grey levels; closer ones are decided by rounding
        assert sure.mean() > 0.9
        assert np.array_equal(np.unpackbits(found)[sure] > 0, wave[sure] > 0.01)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, brighter=st.integers(1, 19))
def test_a_hash_follows_the_image(seed: int, brighter: int) -> None:
    thumbnails = drawn(seed)
    found, variants = hashes(thumbnails), hash_variants(thumbnails)
    assert variants.shape == (len(thumbnails), VARIANTS, 32)
    assert np.array_equal(variants[:, 0], found)
    mirrored = np.ascontiguousarray(thumbnails[:, :, ::-1])
    assert np.array_equal(variants[:, 1], hashes(mirrored))
    assert np.array_equal(hash_variants(mirrored)[:, ::2][:, 0], variants[:, 1])
    assert differ(hashes(thumbnails + np.uint8(brighter)), found).max() <= 3
    assert np.array_equal(np.concatenate([hashes(image[None]) for image in thumbnails]), found)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, brighter=st.integers(1, 19))
def test_a_vector_follows_the_image(seed: int, brighter: int) -> None:
    thumbnails = drawn(seed)
    found, variants = vectors(pictures(thumbnails)), vector_variants(thumbnails)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.einsum("pd,pd->p", variants[:, 0], found) == pytest.approx(1, abs=1e-3), "but for rounding"
    mirrored = vectors(pictures(thumbnails[:, :, ::-1]))
    assert np.einsum("pd,pd->p", variants[:, 1], mirrored) == pytest.approx(1, abs=1e-3)
    lighter = vectors(pictures(thumbnails + np.uint8(brighter)))
    assert np.einsum("pd,pd->p", lighter, found) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("number", range(1, 11))
def test_a_crop_is_nearest_to_its_variant(number: int) -> None:
    cut = 16 if number <= 5 else 32  # pixels of 320
    y, x = ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))[(number - 1) % 5]
    image = smooth(320, 320, seed=number)
    crop = image[y * cut // 2 :, x * cut // 2 :][: 320 - cut, : 320 - cut]
    whole = thumbnail(image)[None]
    far = differ(hash_variants(whole)[0], hashes(thumbnail(crop)[None]))
    assert far.argmin() == 2 * number and far.min() <= 25
    alike = vector_variants(whole)[0] @ vectors(pictures(thumbnail(crop)[None]))[0]
    assert alike.argmax() == 2 * number and alike.max() > 0.98


def test_flat_images_have_no_detail() -> None:
    flat = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (0, 1, 90, 255)])
    assert not has_detail(hash_variants(flat)).any()
    assert not vectors(pictures(flat)).any()
    assert has_detail(hash_variants(drawn(0))).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (31, 33), (64, 64), (100, 900)])
def test_an_image_of_any_shape_has_a_thumbnail(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for pixels in (image, image[::-1, ::-1], image.swapaxes(0, 1)):  # EXIF orientations are such views
        assert thumbnail(pixels).shape == (32, 32, 3)
        assert np.array_equal(thumbnail(pixels), thumbnail(np.ascontiguousarray(pixels)))
