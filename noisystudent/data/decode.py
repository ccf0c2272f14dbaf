"""Bytes to RGB pixels, and the view of them that a model is shown.

Pillow reads every header and decides what is broken; the pixels of a sound JPEG come from libjpeg-turbo by a
shorter way. torchvision's decoders do the same but are deprecated since 0.29.
"""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torch.nn import functional

from noisystudent.errors import first_line

# no others: Pillow hands PostScript to another program, and the pile may come from anywhere
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
_LARGE_VIEW = 224
_MARGIN = 32
_SPARE = 2  # pixels that a reduced window keeps for each pixel of the result, as in Pillow's thumbnails
# EXIF orientations that swap height and width, that turn a file's end to the top, and to the left
_ON_ITS_SIDE, _FROM_BELOW, _FROM_RIGHT = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)

Box = NDArray[np.float32]
"""A window (top, left, height, width) as fractions of an image's height and width."""
Size = tuple[int, int]
"""Height and width in pixels."""


class Picture(NamedTuple):
    """A decoded image, perhaps at a fraction of the original's size.

    Attributes:
        pixels: (h, w, 3) uint8 RGB, not to be changed.
        size: of the original.
        factor: how many pixels of the original make one: 1, 2, 4 or 8.
        margin: pixels of the original by which the image reaches beyond it, at the top and on the left.
    """

    pixels: NDArray[np.uint8]
    size: Size
    factor: int = 1
    margin: Size = (0, 0)

    @property
    def image(self) -> Image.Image:
        """The same for Pillow."""
        return Image.fromarray(self.pixels)


class DecodeError(Exception):
    """These bytes are no image that can be used; `str()` is the reason, for the ledger."""


def decode(
    data: bytes | NDArray[np.uint8], max_pixels: int, resolution: int | None = None, box: Box | None = None
) -> Picture:
    """Decode the first frame of an encoded image.

    Orientation in EXIF is applied, 16-bit values are scaled to 8, transparency is dropped (as torchvision
    and timm do), grey, palette, CMYK and YCCK become RGB.

    Args:
        data: a whole file, or pixels (H, W) or (H, W, 3).
        max_pixels: larger images are refused by their header, before memory is spent on them.
        resolution: side of the view that is wanted of it. A JPEG whose window is at least four times as large
            is then decoded at 1/2, 1/4 or 1/8, so that the window stays at least twice as large. None: whole.
        box: window of that view; None is the clean centre view.

    Raises:
        DecodeError: not an image, cut short, too large, or of a kind without a known scale.
    """
    if not isinstance(data, bytes):
        colours = data if data.ndim == 3 else np.repeat(data[..., None], 3, axis=2)
        return Picture(colours, (data.shape[0], data.shape[1]))
    if not data:
        raise DecodeError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata; what matters raises
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return _pixels(image, data, max_pixels, resolution, box)
        except UnidentifiedImageError as error:
            raise DecodeError(f"not an image (starts with {data[:12]!r})") from error
        except Image.DecompressionBombError as error:
            raise DecodeError(f"decompression bomb: {error}") from error
        except DecodeError:
            raise
        except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes
            reason = first_line(error)
            raise DecodeError(f"broken {_kind(data)}: {reason}") from error


def view(picture: Picture, resolution: int, box: Box | None = None) -> Tensor:
    """What a model of this resolution is shown of an image: a window of it, resized to (3, R, R) uint8.

    The clean view (`box` None) is the middle square of side min(H, W), or from R = 224 on of R / (R + 32) of
    it, as in the paper's evaluation (preprocessing.py of the published code; 0.875 at 224). An image of R×R
    is returned as it is. A box becomes whole pixels of the original, at least one, inside it.
    """
    top, left, height, width = _window(picture.size, resolution, box)
    if picture.factor == 1:
        shown = picture.pixels[top : top + height, left : left + width]
    else:  # edges between pixels, which only Pillow's resize can take
        top, left, by = top + picture.margin[0], left + picture.margin[1], picture.factor
        edges = (left / by, top / by, (left + width) / by, (top + height) / by)
        size = (resolution, resolution)
        shown = np.asarray(picture.image.resize(size, Image.Resampling.BICUBIC, edges))
    return _resize(torch.from_numpy(shown.copy()).permute(2, 0, 1), resolution)


def crop_resize(square: NDArray[np.uint8], resolution: int, box: Box) -> Tensor:
    """The window `box` of a stored square (3, S, S), resized to (3, R, R) uint8."""
    top, left, height, width = _window((square.shape[1], square.shape[2]), resolution, box)
    pixels = square[:, top : top + height, left : left + width].copy()  # the store is read-only
    return _resize(torch.from_numpy(pixels), resolution)


def _window(size: Size, resolution: int, box: Box | None) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels."""
    height, width = size
    if box is not None:
        top, left, tall, wide = (float(value) for value in box)
        tall_px, wide_px = _whole(tall * height, 1, height), _whole(wide * width, 1, width)
        top_px = _whole(top * height, 0, height - tall_px)
        return top_px, _whole(left * width, 0, width - wide_px), tall_px, wide_px
    share = resolution / (resolution + _MARGIN) if resolution >= _LARGE_VIEW else 1.0
    side = resolution if height == width == resolution else max(1, round(min(size) * share))
    return (height - side) // 2, (width - side) // 2, side, side


def _whole(value: float, low: int, high: int) -> int:
    return min(max(round(value), low), high)


def _resize(image: Tensor, resolution: int) -> Tensor:
    """Antialiased bicubic, Pillow's kernel in 8-bit arithmetic."""
    if image.shape[1] == image.shape[2] == resolution:
        return image.contiguous()
    size = (resolution, resolution)
    return functional.interpolate(image[None], size, mode="bicubic", antialias=True)[0].contiguous()


def _pixels(
    image: Image.Image, data: bytes, max_pixels: int, resolution: int | None, box: Box | None
) -> Picture:
    width, height = image.size
    if width * height > max_pixels:
        raise DecodeError(f"{width}x{height} is more than data.max_pixels ({max_pixels}) pixels")
    if data[:2] == b"\xff\xd8" and not _has_end(data):
        raise DecodeError("truncated JPEG: no end-of-image marker")
    factor = 1
    if resolution is not None and isinstance(image, JpegImageFile):
        factor = _reduce(image, resolution, box)
    pixels = _short_way(image, data, factor) if isinstance(image, JpegImageFile) else None
    if pixels is None:
        pixels = np.asarray(_to_rgb(image))
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)  # after loading, which turns TIFFs
    pixels = _upright(pixels, orientation)
    if factor == 1:
        return Picture(pixels, pixels.shape[:2])
    if orientation in _ON_ITS_SIDE:
        width, height = height, width
    below = len(pixels) * factor - height if orientation in _FROM_BELOW else 0
    right = pixels.shape[1] * factor - width if orientation in _FROM_RIGHT else 0
    return Picture(pixels, (height, width), factor, (below, right))


def _short_way(image: JpegImageFile, data: bytes, factor: int) -> NDArray[np.uint8] | None:
    """Pixels as Pillow would load them, without its copies; None where it has to look for itself."""
    if image.mode not in ("RGB", "L"):
        return None
    height, width = (image.height, image.width) if factor > 1 else (0, 0)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:  # also of what Pillow forgives
        return None
    return pixels if pixels.shape[:2] == (image.height, image.width) else None


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """(h, w, 3) as the camera was held, by its EXIF orientation."""
    down, across = orientation in _FROM_BELOW, orientation in _FROM_RIGHT
    turned = pixels.swapaxes(0, 1) if orientation in _ON_ITS_SIDE else pixels
    return turned[:: -1 if down else 1, :: -1 if across else 1]


def _reduce(image: JpegImageFile, resolution: int, box: Box | None) -> int:
    """Have the decoder leave out what the view is too small to show; by which factor it will."""
    width, height = image.size
    if min(width, height) < 2 * _SPARE * resolution:  # most files: no look at their orientation
        return 1
    on_side = image.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
    window = _window((width, height) if on_side else (height, width), resolution, box)
    spare = max(1, min(window[2:]) // (_SPARE * resolution))
    reduced = image.draft(None, (width // spare, height // spare))
    return 1 if reduced is None else round(width / reduced[1][2])


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
    end, at = data.rfind(b"\xff\xd9"), 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return end > at
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return end > 0


def _kind(data: bytes) -> str:
    for start, name in ((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP")):
        if data.startswith(start):
            return name
    return "image"
