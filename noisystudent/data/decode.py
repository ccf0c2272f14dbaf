"""Bytes to RGB pixels, and the view of them that a model is shown.

Pillow decodes everything: torchvision's decoders give the same pixels but are deprecated since 0.29.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

_LARGE_VIEW = 224
_MARGIN = 32


class DecodeError(Exception):
    """These bytes are no image that can be used; `str()` is the reason, for the ledger."""


def decode(data: bytes, max_pixels: int) -> Tensor:
    """Decode the first frame of an encoded image.

    Orientation in EXIF is applied, 16-bit values are scaled to 8, transparency is dropped (as torchvision
    and timm do), grey, palette, CMYK and YCCK become RGB.

    Args:
        data: a whole file.
        max_pixels: larger images are refused by their header, before memory is spent on them.

    Returns:
        (3, H, W) uint8 RGB.

    Raises:
        DecodeError: not an image, cut short, too large, or of a kind without a known scale.
    """
    if not data:
        raise DecodeError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata; what matters raises
        try:
            with Image.open(io.BytesIO(data)) as image:
                return _pixels(image, data, max_pixels)
        except UnidentifiedImageError as error:
            raise DecodeError(f"not an image (starts with {data[:12]!r})") from error
        except Image.DecompressionBombError as error:
            raise DecodeError(f"decompression bomb: {error}") from error
        except DecodeError:
            raise
        except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DecodeError(f"broken {_kind(data)}: {reason}") from error


def from_array(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels (H, W) or (H, W, 3) uint8 as (3, H, W) uint8."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def view(image: Tensor, box: NDArray[np.float32] | None, resolution: int) -> Tensor:
    """What a model of this resolution is shown of an image.

    Args:
        image: (3, H, W) uint8.
        box: (top, left, height, width) as fractions of H and W; None is the clean centre view.
        resolution: side R of the result in pixels.

    Returns:
        (3, R, R) uint8.
    """
    return center_view(image, resolution) if box is None else crop_resize(image, box, resolution)


def center_view(image: Tensor, resolution: int) -> Tensor:
    """The clean view (3, R, R) uint8 of (3, H, W): the middle square, resized.

    An image of R×R is returned as it is. The square's side is min(H, W), or from R = 224 on
    R / (R + 32) of it, as in the paper's evaluation (preprocessing.py of the published code; 0.875 at 224).
    """
    height, width = image.shape[1:]
    if height == width == resolution:
        return image
    share = resolution / (resolution + _MARGIN) if resolution >= _LARGE_VIEW else 1.0
    side = max(1, round(min(height, width) * share))
    top, left = (height - side) // 2, (width - side) // 2
    return _resize(image[:, top : top + side, left : left + side], resolution)


def crop_resize(image: Tensor, box: NDArray[np.float32], resolution: int) -> Tensor:
    """The window `box` of an image (3, H, W) uint8, resized to (3, R, R) uint8.

    The window (top, left, height, width), in fractions, becomes whole pixels, at least one, inside the image.
    """
    height, width = image.shape[1:]
    top, left, tall, wide = (float(value) for value in box)
    tall_px, wide_px = _whole(tall * height, 1, height), _whole(wide * width, 1, width)
    top_px = _whole(top * height, 0, height - tall_px)
    left_px = _whole(left * width, 0, width - wide_px)
    return _resize(image[:, top_px : top_px + tall_px, left_px : left_px + wide_px], resolution)


def _whole(value: float, low: int, high: int) -> int:
    return min(max(round(value), low), high)


def _resize(image: Tensor, resolution: int) -> Tensor:
    """Antialiased bicubic, Pillow's kernel in 8-bit arithmetic."""
    if image.shape[1] == image.shape[2] == resolution:
        return image.contiguous()
    size = (resolution, resolution)
    return functional.interpolate(image[None], size, mode="bicubic", antialias=True)[0].contiguous()


def _pixels(image: Image.Image, data: bytes, max_pixels: int) -> Tensor:
    width, height = image.size
    if width * height > max_pixels:
        raise DecodeError(f"{width}x{height} is more than data.max_pixels ({max_pixels}) pixels")
    if data[:2] == b"\xff\xd8" and not _has_end(data):
        raise DecodeError("truncated JPEG: no end-of-image marker")
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return from_array(np.asarray(_to_rgb(image)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        high_byte = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.mode in ("I", "F"):
        raise DecodeError(
            f"32-bit pixels (Pillow mode {image.mode}) have no known scale; save as 8 or 16 bit"
        )
    return image if image.mode == "RGB" else image.convert("RGB")


def _has_end(data: bytes) -> bool:
    """Whether a JPEG's first scan is followed by an end marker: decoders fill what is missing with grey.

    Segments before the scan are stepped over by their length, so a thumbnail's own end marker does not count.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return data.find(b"\xff\xd9", at) >= 0
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.rfind(b"\xff\xd9") > 0


def _kind(data: bytes) -> str:
    for start, name in ((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP")):
        if data.startswith(start):
            return name
    return "image"
