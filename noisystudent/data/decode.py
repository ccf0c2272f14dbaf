"""Decoding of image files to RGB pixels, and the square views of them that models are given.

Pillow reads the header of every file. The pixels of a JPEG come directly from libjpeg-turbo, which is faster,
and which reports the damage that Pillow fills with grey. torchvision's decoders could do the same, but are
deprecated since torchvision 0.29. `gpu_decode` is for JPEGs on a GPU.
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
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile
from torch import Tensor
from torch.nn import functional

from noisystudent.errors import first_line

# No other formats: Pillow runs an external program for PostScript, and the pool may be untrusted.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
_LARGE_VIEW = 224  # from this resolution on, the clean view leaves out a border
_MARGIN = 32  # CROP_PADDING of EfficientNet's preprocessing.py
_GAP = 2  # a reduced window keeps this many pixels for each pixel of the view, as Pillow's thumbnail() does

_SCANS = 20  # passes over an image of data.max_pixels; progressive JPEGs of photographs have about 10

# EXIF orientations by what they change: 5 to 8 swap height and width; 3, 4, 7, 8 move the last row (after
# the swap) to the top; 2, 3, 6, 7 move the last column to the left.
_SWAPS_SIDES, _FLIPS_ROWS, _FLIPS_COLUMNS = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)

Box = NDArray[np.float32]
"""(4,) crop box (top, left, height, width) as fractions of an image's height and width."""
Size = tuple[int, int]
"""Height and width in pixels."""


class DecodedImage(NamedTuple):
    """A decoded image, possibly at a fraction of its original size.

    Attributes:
        pixels: (h, w, 3) uint8 RGB; read only.
        size: height and width of the original.
        factor: pixels of the original for each decoded pixel, along one side: 1, 2, 4 or 8.
        margin: pixels of the original by which `pixels` extends beyond the image at the top and on the left.
            It is below `factor`, and not 0 only if the size is not a multiple of `factor`.
    """

    pixels: NDArray[np.uint8]
    size: Size
    factor: int = 1
    margin: Size = (0, 0)

    @property
    def image(self) -> Image.Image:
        """`pixels` as a Pillow image."""
        return Image.fromarray(self.pixels)


class DecodeError(Exception):
    """The bytes are not a usable image. `str()` is the reason that is written to ledger.csv."""


def decode(
    data: bytes | NDArray[np.uint8], max_pixels: int, resolution: int | None = None, box: Box | None = None
) -> DecodedImage:
    """Decode an image file, or the first frame of an animation, to RGB.

    EXIF orientation is applied. Values of 12 or 16 bits are scaled to 8 bits. Transparency is dropped, as
    torchvision and timm do. Grey, palette, CMYK and YCCK images become RGB.

    Args:
        data: a whole file, or pixels (H, W) or (H, W, 3).
        max_pixels: images with more pixels are refused by their header, before memory is allocated.
        resolution: side R of the view that will be made of the image. A JPEG whose window (the clean view or
            `box`) has sides of at least 4·R pixels is decoded at 1/2, 1/4 or 1/8 of its size, such that the
            window keeps sides of at least 2·R pixels. None: decode at full size.
        box: crop box of that view. None: the clean view.

    Raises:
        DecodeError: not an image, damaged, too large, or of a pixel type without a known scale. A JPEG is
            damaged if libjpeg-turbo warns of it, even if the pixels are right.
        MemoryError: the memory is full.
    """
    if not isinstance(data, bytes):
        rgb = data if data.ndim == 3 else np.repeat(data[..., None], 3, axis=2)
        return DecodedImage(rgb, (data.shape[0], data.shape[1]))
    if not data:
        raise DecodeError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata; real damage raises
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return _decoded(image, data, max_pixels, resolution, box)
        except UnidentifiedImageError as error:
            raise DecodeError(f"not an image (starts with {data[:12]!r})") from error
        except Image.DecompressionBombError as error:
            raise DecodeError(f"decompression bomb: {error}") from error
        except (DecodeError, MemoryError):  # the file need not be damaged if the memory is full
            raise
        except Exception as error:  # Pillow's plugins raise many types of errors on broken bytes
            raise DecodeError(f"broken {_format_name(data)}: {first_line(error)}") from error


def view(image: DecodedImage, resolution: int, box: Box | None = None) -> Tensor:
    """The window of an image that a model of side R = `resolution` is given, resized to (3, R, R) uint8.

    The clean view (`box` is None) is the centred square with side min(H, W), or R / (R + 32) of it if R is at
    least 224, as in the paper's evaluation (preprocessing.py of the published code; 0.875 at 224). An image
    of R×R is returned unchanged. A box is rounded to whole pixels of the original image; its window has at
    least one pixel and lies inside the image.
    """
    top, left, height, width = window(image.size, resolution, box)
    if image.factor == 1:
        pixels = image.pixels[top : top + height, left : left + width]
    else:
        # In a reduced image the edges of the window lie between pixels. Pillow's resize accepts such edges,
        # torch's interpolate does not.
        top, left, factor = top + image.margin[0], left + image.margin[1], image.factor
        edges = (left / factor, top / factor, (left + width) / factor, (top + height) / factor)
        size = (resolution, resolution)
        pixels = np.asarray(image.image.resize(size, Image.Resampling.BICUBIC, edges))
    return _resize(torch.from_numpy(pixels.copy()).permute(2, 0, 1), resolution)


def crop_resize(square: NDArray[np.uint8], resolution: int, box: Box | None) -> Tensor:
    """A window of a stored clean view (3, S, S) uint8, or the clean view for R in it, as (3, R, R) uint8."""
    if box is None:
        share = min(1.0, clean_share(resolution) / clean_share(square.shape[1]))
        box = np.array([(1 - share) / 2, (1 - share) / 2, share, share], np.float32)
    top, left, height, width = window((square.shape[1], square.shape[2]), resolution, box)
    pixels = square[:, top : top + height, left : left + width].copy()  # the result must own its memory
    return _resize(torch.from_numpy(pixels), resolution)


def clean_share(resolution: int) -> float:
    """Return the side of the clean view as a share of the shorter side of the image."""
    # The paper's models take 224 pixels or more; smaller images, such as those of CIFAR, are not cropped.
    return resolution / (resolution + _MARGIN) if resolution >= _LARGE_VIEW else 1.0


def window(size: Size, resolution: int, box: Box | None) -> tuple[int, int, int, int]:
    """Top, left, height and width of a view in pixels of the original image, see `view`."""
    height, width = size
    if box is not None:
        top, left, tall, wide = (float(value) for value in box)
        tall_px, wide_px = _rounded(tall * height, 1, height), _rounded(wide * width, 1, width)
        top_px = _rounded(top * height, 0, height - tall_px)
        return top_px, _rounded(left * width, 0, width - wide_px), tall_px, wide_px
    share = clean_share(resolution)
    side = resolution if height == width == resolution else max(1, round(min(size) * share))
    return (height - side) // 2, (width - side) // 2, side, side


def _rounded(value: float, low: int, high: int) -> int:
    return min(max(round(value), low), high)


def _resize(image: Tensor, resolution: int) -> Tensor:
    """Antialiased bicubic resize to (3, R, R): Pillow's kernel in 8-bit arithmetic."""
    if image.shape[1] == image.shape[2] == resolution:
        return image.contiguous()
    size = (resolution, resolution)
    return functional.interpolate(image[None], size, mode="bicubic", antialias=True)[0].contiguous()


def _decoded(
    image: Image.Image, data: bytes, max_pixels: int, resolution: int | None, box: Box | None
) -> DecodedImage:
    """`decode` for a file whose header Pillow has read."""
    width, height = image.size
    if width * height > max_pixels:
        raise DecodeError(f"{width}x{height} is more than data.max_pixels ({max_pixels}) pixels")
    factor, pixels = 1, None
    if isinstance(image, JpegImageFile):
        _check_scans(image, data, max_pixels)
        factor = 1 if resolution is None else reduce_jpeg(image, resolution, box)
        pixels = _jpeg_pixels(image, data, factor)
    if pixels is None:
        pixels = np.asarray(_to_rgb(image))
    # Read after the pixels: loading a TIFF applies its orientation and removes the tag.
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    pixels = _upright(pixels, orientation)
    if factor == 1:
        return DecodedImage(pixels, pixels.shape[:2])
    if orientation in _SWAPS_SIDES:
        width, height = height, width
    # The last reduced row and column may extend beyond the image; flips move them to the top and the left.
    top = len(pixels) * factor - height if orientation in _FLIPS_ROWS else 0
    left = pixels.shape[1] * factor - width if orientation in _FLIPS_COLUMNS else 0
    return DecodedImage(pixels, (height, width), factor, (top, left))


def _check_scans(image: JpegImageFile, data: bytes, max_pixels: int) -> None:
    """Check the scans of a JPEG by their markers, before they are decoded.

    A decoder fills the missing part of a truncated file with grey. A scan of a few bytes can be a pass over
    the whole image, so that a small file with thousands of scans would take hours.

    Raises:
        DecodeError: no end marker after the first scan, or too many scans for an image of this size.
    """
    start = _first_scan(data)
    if data.rfind(b"\xff\xd9") <= start:
        raise DecodeError("truncated JPEG: no end-of-image marker")
    if "progressive" not in image.info and data[start + 4 : start + 5] == bytes([image.layers]):
        return  # the first scan has all colours and full precision, so no other scan is read
    marker = np.frombuffer(data, np.uint8)
    scans = int(np.count_nonzero((marker[:-1] == 0xFF) & (marker[1:] == 0xDA)))
    if scans * image.width * image.height > _SCANS * max_pixels:
        raise DecodeError(f"decompression bomb: {scans} scans of {image.width}x{image.height} pixels")


def _jpeg_pixels(image: JpegImageFile, data: bytes, factor: int) -> NDArray[np.uint8] | None:
    """Pixels (h, w, 3) of a JPEG from libjpeg-turbo, equal to Pillow's; None if Pillow has to scale them.

    Raises:
        ValueError: libjpeg-turbo warns of damage. Pillow does not report its warnings.
    """
    height, width = (image.height, image.width) if factor > 1 else (0, 0)
    mode = "CMYK" if image.mode == "CMYK" else "RGB"
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, mode, min_height=height, min_width=width)
    if pixels.shape[:2] != (image.height, image.width):
        return None
    if mode == "CMYK":  # Pillow too takes the values to be inverted, as Adobe writes them
        return np.asarray(Image.fromarray(255 - pixels, mode).convert("RGB"))
    return pixels


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """(h, w, 3) view of `pixels` with the EXIF orientation applied."""
    swapped = pixels.swapaxes(0, 1) if orientation in _SWAPS_SIDES else pixels
    rows, columns = orientation in _FLIPS_ROWS, orientation in _FLIPS_COLUMNS
    return swapped[:: -1 if rows else 1, :: -1 if columns else 1]


def reduce_jpeg(image: JpegImageFile, resolution: int, box: Box | None) -> int:
    """Set the JPEG decoder to the smallest size that is enough for the view; return the factor, 1 to 8."""
    width, height = image.size
    if min(width, height) < 2 * _GAP * resolution:  # most files: avoids parsing their EXIF data
        return 1
    swaps = image.getexif().get(ExifTags.Base.Orientation) in _SWAPS_SIDES
    *_, tall, wide = window((width, height) if swaps else (height, width), resolution, box)
    most = max(1, min(tall, wide) // (_GAP * resolution))
    reduced = image.draft(None, (width // most, height // most))
    return 1 if reduced is None else round(width / reduced[1][2])


def _to_rgb(image: Image.Image) -> Image.Image:
    # Pillow scales the values of a PGM with more than 8 bits to 16 bits, in mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and isinstance(image, PpmImageFile)):
        return Image.fromarray(_high_byte(image)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DecodeError(
            f"32-bit or signed pixels (Pillow mode {image.mode}) have no known scale; save as 8 or 16 bit"
        )
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_byte(image: Image.Image) -> NDArray[np.uint8]:
    """(h, w) the upper 8 bits of grey values with 12 or 16 bits, which convert() would clip at 255."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    (bits,) = tags.get(BITSPERSAMPLE, (16,))
    high: NDArray[np.uint8] = (np.asarray(image).astype(np.uint16) >> (bits - 8)).astype(np.uint8)
    # WhiteIsZero: Pillow inverts it with 8 bits only
    return ~high if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 else high


def _first_scan(data: bytes) -> int:
    """Position of the marker of a JPEG's first scan; 0 if there is none.

    Segments before the scan are skipped by their length, so the scan of an embedded thumbnail does not count.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:  # start of scan
            return at
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def _format_name(data: bytes) -> str:
    for start, name in ((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP")):
        if data.startswith(start):
            return name
    return "image"
