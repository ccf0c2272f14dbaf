"""JPEG: the pixels are Pillow's, and damage that Pillow tolerates is refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded, ramp, smooth
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from noisystudent.data.decode import DecodeError, decode

LIMIT = 10_000_000


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    channels=st.sampled_from(["L", "RGB"]),
    options=st.fixed_dictionaries({"quality": st.integers(1, 100), "progressive": st.booleans()}),
    colours=st.sampled_from([{}, {"subsampling": 0}, {"subsampling": 1}, {"keep_rgb": True}]),
    resolution=st.sampled_from([None, 1, 4, 9]),
)
@settings(max_examples=100, deadline=None)
def test_a_jpeg_is_what_pillow_makes_of_it(
    size: tuple[int, int],
    channels: str,
    options: dict[str, int],
    colours: dict[str, int],
    resolution: int | None,
) -> None:
    noise = np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8)
    data = encoded(np.asarray(Image.fromarray(noise).convert(channels)), "JPEG", **options, **colours)
    decoded, expected = decode(data, LIMIT, resolution), Image.open(io.BytesIO(data))
    if decoded.factor > 1:
        expected.draft(None, (expected.width // decoded.factor, expected.height // decoded.factor))
    np.testing.assert_array_equal(decoded.pixels, np.asarray(expected.convert("RGB")))


def test_intact_jpegs_are_not_decoded_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_image: Image.Image) -> None:
        raise AssertionError("loaded by Pillow")

    data = encoded(ramp(40, 30), "JPEG")
    monkeypatch.setattr(JpegImageFile, "load", load)
    assert decode(data, LIMIT).size == (40, 30)


def damaged(data: bytes) -> dict[str, bytes]:
    """A JPEG that is cut with a forged end marker, or whose scan lacks a part."""
    return {
        "forged end": data[: len(data) // 2] + b"\xff\xd9",
        "a part is missing": data[: -len(data) // 3] + data[-20:],
    }


@pytest.mark.parametrize("damage", damaged(b"x" * 200))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("resolution", [None, 1])
def test_a_jpeg_that_the_decoder_warns_of_is_refused(
    damage: str, mode: str, progressive: bool, resolution: int | None
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, "JPEG", progressive=progressive)
    assert decode(buffer.getvalue(), LIMIT, resolution).size == (64, 64)
    with pytest.raises(DecodeError, match="broken JPEG"):
        decode(damaged(buffer.getvalue())[damage], LIMIT, resolution)


def test_a_small_file_with_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    data = encoded(ramp(1000, 1000), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(DecodeError, match=r"bomb: 50\d\d scans"):
        decode(data[:-2] + scan * 5000 + data[-2:], LIMIT)


@pytest.mark.parametrize("resolution", [None, 4])
@pytest.mark.parametrize("transform", [0, 2], ids=["CMYK", "YCCK"])
def test_a_cmyk_jpeg_is_what_pillow_makes_of_it(transform: int, resolution: int | None) -> None:
    buffer = io.BytesIO()
    Image.fromarray(smooth(120, 96)).convert("CMYK").save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    data[data.index(b"Adobe") + 11] = transform
    decoded, expected = decode(bytes(data), LIMIT, resolution), Image.open(io.BytesIO(data))
    if decoded.factor > 1:
        expected.draft(None, (expected.width // decoded.factor, expected.height // decoded.factor))
    np.testing.assert_array_equal(decoded.pixels, np.asarray(expected.convert("RGB")))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("filled", [b"", b"\0"])
@pytest.mark.parametrize("resolution", [None, 1])
def test_truncated_jpeg_is_refused_wherever_it_is_cut(
    progressive: bool, filled: bytes, resolution: int | None
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encoded(noise, "JPEG", progressive=progressive)
    for cut in [1, 2, 3, 10, 100, *range(200, len(data), 211)]:
        with pytest.raises(DecodeError):
            decode(data[:-cut] + filled * cut, LIMIT, resolution)


def test_a_thumbnails_end_marker_does_not_hide_a_truncation() -> None:
    data = encoded(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8), "JPEG")
    thumbnail = b"Exif\0\0" + encoded(ramp(8, 8), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = data[:2] + segment + data[2:]
    assert decode(whole, LIMIT).size == (40, 40)
    with pytest.raises(DecodeError, match="end-of-image"):
        decode(whole[: len(whole) - 200] + bytes(200), LIMIT)
