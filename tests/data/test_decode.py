"""Decoding: agreement with Pillow, unusual files, broken files."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded, ramp, smooth
from PIL import Image, ImageOps

from noisystudent.data.decode import DecodeError, crop_resize, decode, view

PHOTOS = Path(__file__).parents[2] / ".." / "shared" / "data" / "imagenet-samples" / "photos.tar"
LIMIT = 10_000_000
WHOLE = np.array([0, 0, 1, 1], np.float32)


def photos(count: int) -> list[bytes]:
    if not PHOTOS.exists():
        pytest.skip(f"needs {PHOTOS}")
    with tarfile.open(PHOTOS) as archive:
        files = [member for member in archive.getmembers() if member.isfile()][:count]
        return [archive.extractfile(member).read() for member in files]  # type: ignore[union-attr]


def chw(image: Image.Image | np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def pixels(data: bytes) -> torch.Tensor:
    return chw(decode(data, LIMIT).image)


def test_photos_decode_as_pillow_does() -> None:
    for data in photos(8):
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        assert torch.equal(pixels(data), chw(expected))


def test_the_clean_view_of_photos_is_pillows_crop_and_bicubic_resize_within_two_levels() -> None:
    for data in photos(8):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        side = round(min(image.size) * 0.875)  # crop_pct at 224
        left, top = (image.width - side) // 2, (image.height - side) // 2
        cropped = image.crop((left, top, left + side, top + side))
        expected = chw(cropped.resize((224, 224), Image.Resampling.BICUBIC))
        assert (view(decode(data, LIMIT), 224).int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_return_the_pixels(kind: str) -> None:
    image = ramp(20, 31)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert torch.equal(pixels(encoded(image, kind, **options)), chw(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(ramp(16, 24), kind, exif=exif)
    expected = chw(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert torch.equal(pixels(data), expected)
    assert decode(data, LIMIT).size == ((16, 24) if orientation < 5 else (24, 16))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        assert pixels(encoded(values, kind))[1].tolist() == [[0, 0, 1, 128, 255]]


def tiff(values: np.ndarray, bits: int, white_is_zero: bool) -> bytes:
    """An uncompressed grey TIFF; 12-bit values are packed, most significant bit first."""
    if bits == 12:
        digits = (values.ravel()[:, None] >> np.arange(11, -1, -1)) & 1
        data = np.packbits(digits.astype(np.uint8)).tobytes()
    else:
        data = values.astype("<u2").tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 8, 277: 1}
    tags |= {278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    end = 8 + len(data) + len(data) % 2
    head = b"II*\0" + struct.pack("<I", end) + data.ljust(end - 8, b"\0")
    return head + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(("bits", "white_is_zero"), [(12, False), (16, False), (16, True)])
def test_grey_tiffs_of_more_than_eight_bits_are_scaled_by_their_tags(bits: int, white_is_zero: bool) -> None:
    values = np.arange(0, 2**bits, 2**bits // 64).reshape(8, 8)
    expected = 255 - (values >> (bits - 8)) if white_is_zero else values >> (bits - 8)
    assert torch.equal(pixels(tiff(values, bits, white_is_zero))[0], torch.from_numpy(expected).byte())


@pytest.mark.parametrize("most", [1000, 4095, 65535])
def test_grey_ppms_of_more_than_eight_bits_are_scaled_by_their_largest_value(most: int) -> None:
    values = np.linspace(0, most, 64).round().astype(">u2").reshape(8, 8)
    for data in (
        b"P5\n8 8\n%d\n" % most + values.tobytes(),
        b"P2\n8 8\n%d\n" % most + b" ".join(b"%d" % value for value in values.ravel()),
    ):
        shown = pixels(data)[0].numpy()
        assert np.abs(shown - values.astype(int) * 255 / most).max() <= 1


def test_a_full_memory_is_no_damage_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(image: Image.Image, mode: str) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", full)
    with pytest.raises(MemoryError):
        decode(encoded(np.zeros((4, 4), np.uint8)), LIMIT)


def test_cmyk_jpeg_becomes_rgb() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), (250, 20, 20), np.uint8)).convert("CMYK").save(buffer, "JPEG")
    red, green, blue = pixels(buffer.getvalue()).float().mean((1, 2)).tolist()
    assert red > 240 and green < 35 and blue < 35


def test_transparency_is_dropped_not_composited() -> None:
    image = np.zeros((4, 4, 4), np.uint8)
    image[..., 0] = 200  # red, fully transparent
    assert pixels(encoded(image))[0].unique().tolist() == [200]


def test_palette_with_transparency_keeps_its_colours() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([255, 0]))
    assert pixels(buffer.getvalue())[:, 0, 0].tolist() == [10, 20, 30]


def test_animated_gif_gives_its_first_frame() -> None:
    frames = [Image.fromarray(np.full((6, 6), value, np.uint8)) for value in (10, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert pixels(buffer.getvalue()).unique().tolist() == [10]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_half_a_file_is_refused(kind: str) -> None:
    data = encoded(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8), kind)
    with pytest.raises(DecodeError):
        decode(data[: len(data) // 2], LIMIT)


@pytest.mark.parametrize(
    "data", [b"", b"hello, I am a text file\n", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"]
)
def test_what_is_no_image_is_refused_with_a_reason(data: bytes) -> None:
    with pytest.raises(DecodeError, match=r".+"):
        decode(data, LIMIT)


@pytest.mark.parametrize(
    "data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", b"\x0a\x05\x01\x08" * 64]
)
def test_other_formats_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError, match="not an image"):
        decode(data, LIMIT)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header declares any size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [3_200, 9_600, 60_000])
def test_decompression_bombs_are_refused_by_their_header(side: int) -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(DecodeError, match="pixels"):
        decode(png_header(side, side), LIMIT)
    assert before == Image.MAX_IMAGE_PIXELS


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(DecodeError, match="32-bit"):
        decode(encoded(np.zeros((4, 4), np.float32), "TIFF"), LIMIT)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (300, 10), (7, 9)])
@pytest.mark.parametrize("resolution", [8, 32, 224])
def test_views_have_their_size_whatever_the_image(height: int, width: int, resolution: int) -> None:
    image, square = decode(ramp(height, width), LIMIT), np.zeros((3, width, width), np.uint8)
    box = np.array([0.9, 0.9, 0.01, 0.01], np.float32)
    for pixels in (view(image, resolution), view(image, resolution, box)):
        assert pixels.shape == (3, resolution, resolution) and pixels.is_contiguous()
    assert crop_resize(square, resolution, box).shape == (3, resolution, resolution)


def test_an_image_of_the_right_size_is_unchanged() -> None:
    for side in (32, 224):
        image = ramp(side, side)
        assert torch.equal(view(decode(image, LIMIT), side), chw(image))
        assert torch.equal(view(decode(image, LIMIT), side, WHOLE), chw(image))
        assert torch.equal(crop_resize(image.transpose(2, 0, 1), side, WHOLE), chw(image))


def test_a_box_is_the_window_it_names() -> None:
    image = ramp(40, 60)
    box = np.array([10 / 40, 30 / 60, 8 / 40, 8 / 60], np.float32)
    assert torch.equal(view(decode(image, LIMIT), 8, box), chw(image[10:18, 30:38]))


@given(box=st.tuples(*[st.floats(0.0, 1.0, width=32)] * 4), side=st.integers(8, 40))
@settings(max_examples=50, deadline=None)
def test_a_stored_square_is_cropped_as_its_file_would_be(box: tuple[float, ...], side: int) -> None:
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    window = np.array(box, np.float32)
    stored = crop_resize(noise.transpose(2, 0, 1), 16, window)
    assert torch.equal(stored, view(decode(encoded(noise), LIMIT), 16, window))


def test_a_stored_clean_view_gives_a_smaller_network_what_its_own_would_show() -> None:
    image = decode(smooth(600, 700), LIMIT)
    own, stored = view(image, 224).float(), view(image, 448).numpy()
    inner, whole = ((crop_resize(stored, 224, box).float() - own).abs().mean() for box in (None, WHOLE))
    assert inner < whole / 10, "but for rounding to whole pixels"
    assert torch.equal(crop_resize(stored, 448, None), view(image, 448))


@pytest.mark.parametrize(("resolution", "factor"), [(8, 8), (16, 8), (17, 4), (40, 2), (68, 1), (224, 1)])
def test_a_large_jpeg_is_decoded_smaller_but_never_below_twice_the_view(resolution: int, factor: int) -> None:
    decoded = decode(encoded(smooth(270, 400), "JPEG"), LIMIT, resolution)
    assert (decoded.size, decoded.factor) == ((270, 400), factor)
    assert decoded.pixels.shape == (-(-270 // factor), -(-400 // factor), 3)
    assert factor in (1, 8) or 270 / (2 * factor) < 2 * resolution <= 270 / factor
    assert decode(encoded(smooth(270, 400)), LIMIT, resolution).factor == 1, (
        "only JPEG can be decoded at a smaller size"
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("box", [None, (0.13, 0.07, 0.61, 0.83)])
def test_a_smaller_decoding_gives_the_same_view(orientation: int, box: tuple[float, ...] | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(301, 403), "JPEG", quality=95, exif=exif)
    window = None if box is None else np.array(box, np.float32)
    small, whole = decode(data, LIMIT, 24, window), decode(data, LIMIT)
    assert small.factor > whole.factor == 1 and small.size == whole.size
    gap = view(small, 24, window).int() - view(whole, 24, window).int()
    assert gap.abs().float().mean() < 1.5, "a window that is off by a quarter of a pixel gives 10"


def test_smaller_decodings_of_photos_differ_by_a_level_in_the_mean() -> None:
    for data in photos(8):
        small, whole = decode(data, LIMIT, 32), decode(data, LIMIT)
        assert small.factor > 1
        assert (view(small, 32).int() - view(whole, 32).int()).abs().float().mean() < 1.5
