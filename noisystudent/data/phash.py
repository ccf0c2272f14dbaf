"""What is compared of two images to find near copies: perceptual hashes, and vectors of small pictures.

Both are made of a thumbnail, 32×32 pixels of the whole image. The hash is pHash with 256 bits: the signs of
the 16×16 lowest frequencies of the grey thumbnail. All terms of its sums are whole numbers that float64 holds
exactly, so that it does not depend on the machine, the number of threads or the size of a batch.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 32
"""Side of a thumbnail in pixels."""
BYTES = 32
"""Bytes of a hash."""
COARSE_BYTES = 8
"""The first bytes of a hash: its 8×8 lowest frequencies."""
DIGEST_BYTES = BYTES + 3 * (SIDE // 2) ** 2
"""Bytes of a hash and a picture."""
VARIANTS = 22
"""Versions of a held-out image: whole, 95 % and 90 % of its sides at corners and centre; all mirrored too."""

Signature = Literal["digest", "both"]
"""What is kept of an image. digest: its hash and its picture, 800 bytes. both: its thumbnail, too, 3.9 kB."""
Thumbnails = NDArray[np.uint8]
"""(n, 32, 32, 3) RGB."""
Hashes = NDArray[np.uint8]
"""(…, 32) the bits of hashes."""
Pictures = NDArray[np.uint8]
"""(n, 3, 16, 16) RGB."""
Vectors = NDArray[np.float32]
"""(…, 768) pictures with length 1, each channel without its mean; 0 for a picture of one colour."""

_FREQUENCIES = 16  # along each side
_SAMPLED = 64  # of the decoded pixels of a side, at least so many are read; an average of all takes longer
_SCALE = 1 << 16  # of a cosine as a whole number: 8 bits of grey and two cosines and sums stay below 2^53
_FLAT = 0.01  # grey levels: what is left of a flat image when the cosines are rounded is below it

_Window = tuple[float, float]  # start and length of a part of a side of length 1


def _windows() -> list[tuple[_Window, _Window]]:
    """Rows and columns of the crops of a held-out image, the whole image first."""
    places = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))
    crops = [((y * cut, 1 - cut), (x * cut, 1 - cut)) for cut in (0.05, 0.1) for y, x in places]
    return [((0.0, 1.0), (0.0, 1.0)), *crops]


def _overlap(window: _Window, cells: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the part of each of `cells` equal cells of a side that lies in the window, in cells."""
    start, end = window[0] * cells, (window[0] + window[1]) * cells
    at = np.arange(cells)
    low = np.maximum(at, start)
    return low, np.maximum(np.minimum(at + 1, end), low)


def _cosines(window: _Window) -> NDArray[np.float64]:
    """(16, 32) cosines of a DCT-II over a window of the pixels of a side, as whole numbers."""
    low, high = _overlap(window, SIDE)
    middle = ((low + high) / 2 / SIDE - window[0]) / window[1]
    waves = np.cos(np.pi * np.arange(_FREQUENCIES)[:, None] * middle)
    return np.rint(_SCALE * waves * (high - low) / window[1])


def _averages(window: _Window) -> NDArray[np.float32]:
    """(16, 32) weights that reduce a window of the pixels of a side to 16 pixels."""
    cells = SIDE // 2
    edges = (window[0] + window[1] * np.arange(cells + 1) / cells) * SIDE
    at = np.arange(SIDE)
    shared = np.minimum(at + 1, edges[1:, None]) - np.maximum(at, edges[:-1, None])
    return np.asarray(np.maximum(shared, 0) / np.diff(edges)[:, None], np.float32)


_CROPS = [(_cosines(rows), _cosines(columns)) for rows, columns in _windows()]
_PICTURES = [(_averages(rows), _averages(columns)) for rows, columns in _windows()]
_MIRROR = (-1.0) ** np.arange(_FREQUENCIES)  # of the columns: what mirroring does to a cosine
# 8×8 lowest frequencies first, then those around them
_ORDER = np.argsort(np.maximum.outer(*[np.arange(_FREQUENCIES)] * 2), axis=None, kind="stable")
_LEAST = _FLAT * (_SCALE * SIDE) ** 2


def thumbnail(pixels: NDArray[np.uint8]) -> Thumbnails:
    """(32, 32, 3) of an image (H, W, 3): area averages of at least 64 pixels of each side, if it has them."""
    step = max(1, min(pixels.shape[:2]) // _SAMPLED)
    small: Thumbnails = cv2.resize(pixels[::step, ::step], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return small


def signatures(thumbnails: Thumbnails, kind: Signature) -> NDArray[np.uint8]:
    """(n, B) what is kept of each image."""
    parts = [hashes(thumbnails), pictures(thumbnails), *([thumbnails] if kind == "both" else [])]
    return np.concatenate([part.reshape(len(thumbnails), -1) for part in parts], axis=1)


def digests_of(kept: NDArray[np.uint8]) -> tuple[Hashes, Pictures]:
    """Hashes and pictures in signatures (n, B)."""
    return kept[:, :BYTES], kept[:, BYTES:DIGEST_BYTES].reshape(-1, 3, SIDE // 2, SIDE // 2)


def thumbnails_of(kept: NDArray[np.uint8]) -> Thumbnails:
    """Thumbnails in signatures (n, B) of the kind `both`."""
    return kept[:, DIGEST_BYTES:].reshape(-1, SIDE, SIDE, 3)


def hashes(thumbnails: Thumbnails) -> Hashes:
    """(n, 32) the hash of each image."""
    return _bits(_coefficients(_grey(thumbnails), *_CROPS[0]))


def hash_variants(thumbnails: Thumbnails) -> Hashes:
    """(n, 22, 32) the hashes of each image and its variants: first the image, then the image mirrored."""
    grey = _grey(thumbnails)
    waves = [_coefficients(grey, rows, columns) for rows, columns in _CROPS]
    return np.stack([_bits(one) for wave in waves for one in (wave, wave * _MIRROR)], axis=1)


def bits_between(some: Hashes, others: Hashes) -> NDArray[np.int32]:
    """(n,) number of bits in which two hashes differ."""
    differ = np.ascontiguousarray(some ^ others).view(np.uint64)
    distances: NDArray[np.int32] = np.bitwise_count(differ).sum(axis=-1, dtype=np.int32)
    return distances


def has_detail(codes: Hashes) -> NDArray[np.bool_]:
    """(…,) False for nearly flat images, whose hashes are alike: under an eighth of their bits is set.

    Half of the bits of a photograph are set.
    """
    bits = np.bitwise_count(np.ascontiguousarray(codes).view(np.uint64)).sum(axis=-1)
    return np.asarray(bits >= BYTES)


def pictures(thumbnails: Thumbnails) -> Pictures:
    """(n, 3, 16, 16) the picture of each image."""
    wide = thumbnails.astype(np.uint16)
    rows = wide[:, ::2] + wide[:, 1::2]
    sums = rows[:, :, ::2] + rows[:, :, 1::2]
    return np.ascontiguousarray(((sums + 2) >> 2).astype(np.uint8).transpose(0, 3, 1, 2))


def vectors(small: Pictures) -> Vectors:
    """(n, 768) the vector of each picture."""
    return _directions(small.astype(np.float32))


def vector_variants(thumbnails: Thumbnails) -> Vectors:
    """(n, 22, 768) the vectors of each image and its variants, in the order of `hash_variants`."""
    pictures = [_picture(thumbnails, rows, columns) for rows, columns in _PICTURES]
    both = [_directions(one) for picture in pictures for one in (picture, picture[..., ::-1])]
    return np.stack(both, axis=1)


def _grey(thumbnails: Thumbnails) -> NDArray[np.float64]:
    """(n, 32, 32) luma of ITU-R 601, in whole grey levels."""
    grey: NDArray[np.uint8] = cv2.cvtColor(thumbnails.reshape(-1, SIDE, 3), cv2.COLOR_RGB2GRAY)
    return grey.reshape(-1, SIDE, SIDE).astype(np.float64)


def _coefficients(
    grey: NDArray[np.float64], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n, 16, 16) lowest frequencies, rows by columns."""
    # A product for each image. A larger one would start the threads of BLAS, which take the cores from other
    # worker processes: on busy cores the scan took twice the processor time.
    waves: NDArray[np.float64] = rows @ (grey @ columns.T)
    return waves


def _bits(waves: NDArray[np.float64]) -> Hashes:
    """(n, 32) the signs of the coefficients; 0 for one that is not above what rounding leaves."""
    return np.packbits(waves.reshape(len(waves), -1)[:, _ORDER] > _LEAST, axis=1)


def _picture(
    thumbnails: Thumbnails, rows: NDArray[np.float32], columns: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(n, 3, 16, 16) a window of each thumbnail."""
    channels = thumbnails.transpose(0, 3, 1, 2).astype(np.float32)
    return np.asarray(rows @ channels @ columns.T, np.float32)


def _directions(pictures: NDArray[np.float32]) -> Vectors:
    """(n, 768) of pictures (n, 3, 16, 16)."""
    # each channel without its mean: all pictures of a blue sky would be alike
    means = pictures.mean(axis=(2, 3), keepdims=True)
    flat = np.asarray(pictures - means, np.float32).reshape(-1, 3 * (SIDE // 2) ** 2)
    length = np.sqrt(np.square(flat).sum(axis=1, keepdims=True))
    detail = length > np.sqrt(flat.shape[1])  # at least 1 grey level in each value
    directions: Vectors = np.divide(flat, length, out=np.zeros_like(flat), where=detail)
    return directions
