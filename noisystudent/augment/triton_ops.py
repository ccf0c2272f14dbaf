"""The kernels of `ops.run` in Triton, for a GPU: each image computes only its own operation; equal pixels."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from noisystudent.augment import program as layout
from noisystudent.augment.policies import Op
from noisystudent.augment.program import Program

_FILL, _HEAD, _WORDS = tl.constexpr(layout.FILL), tl.constexpr(layout.HEAD), tl.constexpr(layout.WORDS)
_SQUARE, _FACTOR = tl.constexpr(layout.SQUARE.start), tl.constexpr(layout.FACTOR)
_CURVE, _MATRIX = tl.constexpr(layout.CURVE.start), tl.constexpr(layout.MATRIX.start)
_BOX = tl.constexpr(layout.BOX.start)
_AUTO_CONTRAST, _EQUALIZE = tl.constexpr(int(Op.AUTO_CONTRAST)), tl.constexpr(int(Op.EQUALIZE))
_SOLARIZE_ADD, _CONTRAST = tl.constexpr(int(Op.SOLARIZE_ADD)), tl.constexpr(int(Op.CONTRAST))
_COLOR, _SHARPNESS = tl.constexpr(int(Op.COLOR)), tl.constexpr(int(Op.SHARPNESS))
_TRANSLATE_Y, _CUTOUT = tl.constexpr(int(Op.TRANSLATE_Y)), tl.constexpr(int(Op.CUTOUT))

BLOCK, WARPS = 1024, 8
"""Pixels of one channel that a program computes, and its warps: 4 pixels for each thread."""


def run(images: Tensor, program: Program, block: int = BLOCK) -> Tensor:
    """Apply a compiled plan to a batch of images, with the pixels of `ops.run`.

    Each layer is two launches: tables of the images that need one, then the pixels. Crop, flip and cutout are
    part of the first or last layer.

    Args:
        images: (B, 3, S, S) uint8 on a GPU. Not changed.
        program: ungrouped program of at least one layer, on the same device.
        block: power of 2; it changes no pixel.

    Returns:
        (B, 3, S, S) uint8.
    """
    policy, channels, side = program.policy, 3 * len(images), images.shape[-1]
    images, tables = images.contiguous(), images.new_empty((len(images), 3, 256))
    level = min(side * side // 256, 255) if policy.quirks == "official" else -1  # see `Policy.quirks`
    for number in range(program.num_ops):
        noised, last = torch.empty_like(images), number == program.num_ops - 1
        layer: dict[str, Any] = {
            "WIDTH": program.words.shape[1],
            "LAYER": number,
            "SIDE": side,
            "MOVE": policy.moves and not policy.crop_last and number == 0,
        }
        _make_tables[(channels,)](
            images, tables, program.words, **layer, LEVEL=level, BLOCK=2 * block, num_warps=WARPS
        )
        _make_pixels[(channels, triton.cdiv(side * side, block))](
            images,
            noised,
            tables,
            program.words,
            **layer,
            SQUARE=last and policy.cutout > 0,
            MOVE_LAST=last and policy.moves and policy.crop_last,
            BLOCK=block,
            num_warps=WARPS,
        )
        images = noised
    return images


@triton.jit
def _make_tables(
    images,
    tables,
    words,
    WIDTH: tl.constexpr,
    LAYER: tl.constexpr,
    SIDE: tl.constexpr,
    MOVE: tl.constexpr,
    LEVEL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the table (256,) of one channel: AutoContrast's, Equalize's, or Contrast's level 256 times."""
    image, channel = tl.program_id(0) // 3, tl.program_id(0) % 3
    words += image * WIDTH
    op = tl.load(words + _HEAD + LAYER * _WORDS)
    if (op <= _EQUALIZE) | (op == _CONTRAST):
        images += image.to(tl.int64) * 3 * SIDE * SIDE
        level = tl.arange(0, 256)
        # Pixels of each level, in the channel or, for Contrast, in the luma.
        count = tl.zeros((256,), tl.int32)
        for start in range(0, SIDE * SIDE, BLOCK):
            place = start + tl.arange(0, BLOCK)
            row, column, inside = place // SIDE, place % SIDE, place < SIDE * SIDE
            if op == _CONTRAST:
                pixel = _luma(images, row, column, inside, words, SIDE, MOVE)
            else:
                pixel = _load(images, channel, row, column, inside, words, SIDE, MOVE)
            count += tl.histogram(pixel, 256, mask=inside)
        if op == _AUTO_CONTRAST:
            table = _auto_contrast(level, count)
        elif op == _EQUALIZE:
            table = _equalize(level, count, SIDE * SIDE)
        elif LEVEL >= 0:
            table = tl.full((256,), LEVEL, tl.int32)
        else:
            total = tl.sum((level * count).to(tl.int64))
            mean = (2 * total + SIDE * SIDE) // (2 * SIDE * SIDE)
            table = tl.zeros((256,), tl.int32) + mean.to(tl.int32)
        tl.store(tables + tl.program_id(0) * 256 + level, table.to(tl.uint8))


@triton.jit
def _make_pixels(
    images,
    noised,
    tables,
    words,
    WIDTH: tl.constexpr,
    LAYER: tl.constexpr,
    SIDE: tl.constexpr,
    MOVE: tl.constexpr,
    SQUARE: tl.constexpr,
    MOVE_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a block of pixels of one channel; neighbours in `Op` share a branch."""
    image, channel = tl.program_id(0) // 3, tl.program_id(0) % 3
    images += image.to(tl.int64) * 3 * SIDE * SIDE
    noised += tl.program_id(0).to(tl.int64) * SIDE * SIDE
    tables += tl.program_id(0) * 256
    words += image * WIDTH
    layer = words + _HEAD + LAYER * _WORDS
    op = tl.load(layer)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row, column, inside = place // SIDE, place % SIDE, place < SIDE * SIDE
    if MOVE_LAST:
        row, column = _reflect(row, column, words, SIDE)
    if (op > _SHARPNESS) & (op <= _TRANSLATE_Y):
        matrix = layer + _MATRIX
        pixel = _affine(images, channel, row, column, inside, matrix, words, SIDE, MOVE)
    else:
        pixel = _load(images, channel, row, column, inside, words, SIDE, MOVE)
    if op <= _EQUALIZE:
        pixel = tl.load(tables + pixel).to(tl.int32)
    elif op <= _SOLARIZE_ADD:
        pixel = _curve(pixel, layer + _CURVE)
    elif op <= _SHARPNESS:
        if op == _COLOR:
            other = _luma(images, row, column, inside, words, SIDE, MOVE)
        elif op == _SHARPNESS:
            other = _smooth(images, channel, row, column, inside, words, SIDE, MOVE)
        else:  # one level: black for brightness
            other = tl.zeros_like(pixel) + tl.load(tables, mask=op == _CONTRAST, other=0).to(tl.int32)
        pixel = _blend(pixel.to(tl.float32), other.to(tl.float32), tl.load(layer + _FACTOR))
    elif op == _CUTOUT:
        pixel = _cutout(pixel, row, column, layer + _BOX)
    if SQUARE:
        pixel = _cutout(pixel, row, column, words + _SQUARE)
    tl.store(noised + place, pixel.to(tl.uint8), mask=inside)


@triton.jit
def _load(images, channel, row, column, mask, words, SIDE: tl.constexpr, MOVE: tl.constexpr):
    """Pixels at row and column of the image after crop and flip; `FILL` where the mask is false."""
    if MOVE:
        row, column = _reflect(row, column, words, SIDE)
    return tl.load(images + (channel * SIDE + row) * SIDE + column, mask=mask, other=_FILL).to(tl.int32)


@triton.jit
def _reflect(row, column, words, SIDE: tl.constexpr):
    """Position before crop and flip, see `ops._crop_flip`."""
    last = SIDE - 1
    row = last - tl.abs(last - tl.abs(row * tl.load(words) + tl.load(words + 2)))
    column = last - tl.abs(last - tl.abs(column * tl.load(words + 1) + tl.load(words + 3)))
    return row, column


@triton.jit
def _affine(images, channel, row, column, inside, matrix, words, SIDE: tl.constexpr, MOVE: tl.constexpr):
    """See `ops._affine`; here the frame is the mask of the load."""
    from_column = column * tl.load(matrix) + row * tl.load(matrix + 2) + tl.load(matrix + 4)
    from_row = column * tl.load(matrix + 1) + row * tl.load(matrix + 3) + tl.load(matrix + 5)
    from_row, from_column = (from_row >> 16) - 1, (from_column >> 16) - 1
    known = (from_row >= 0) & (from_row < SIDE) & (from_column >= 0) & (from_column < SIDE)
    return _load(images, channel, from_row, from_column, inside & known, words, SIDE, MOVE)


@triton.jit
def _luma(images, row, column, mask, words, SIDE: tl.constexpr, MOVE: tl.constexpr):
    """See `ops._luma`."""
    red = _load(images, 0, row, column, mask, words, SIDE, MOVE)
    green = _load(images, 1, row, column, mask, words, SIDE, MOVE)
    blue = _load(images, 2, row, column, mask, words, SIDE, MOVE)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


@triton.jit
def _smooth(images, channel, row, column, mask, words, SIDE: tl.constexpr, MOVE: tl.constexpr):
    """See `ops._smooth`."""
    border = (row == 0) | (row == SIDE - 1) | (column == 0) | (column == SIDE - 1)
    centre = _load(images, channel, row, column, mask, words, SIDE, MOVE)
    total = 4 * centre
    for down in tl.static_range(-1, 2):
        for right in tl.static_range(-1, 2):
            known = mask & ~border
            total += _load(images, channel, row + down, column + right, known, words, SIDE, MOVE)
    return tl.where(border, centre, ((total + 6) * 5042) >> 16)


@triton.jit
def _auto_contrast(level, count):
    """See `ops._auto_contrast_tables`; the maxima with 0 keep product and difference two roundings."""
    low = tl.min(tl.where(count > 0, level, 255)).to(tl.float64)
    high = tl.max(tl.where(count > 0, level, 0)).to(tl.float64)
    flat = high <= low  # a channel of one level is kept
    scale = tl.where(flat, 1.0, 255.0 / tl.where(flat, 1.0, high - low))
    offset = tl.maximum(tl.where(flat, 0.0, low) * scale, 0.0)
    stretched = tl.maximum(level.to(tl.float64) * scale, 0.0) - offset
    return tl.minimum(tl.maximum(stretched, 0.0), 255.0).to(tl.int32)


@triton.jit
def _equalize(level, count, AREA: tl.constexpr):
    """See `ops._equalize_tables`."""
    brightest = tl.max(tl.where(count > 0, level, 0))
    step = (AREA - tl.sum(tl.where(level == brightest, count, 0))) // 255
    darker = tl.cumsum(count) - count
    table = tl.minimum((step // 2 + darker) // tl.maximum(step, 1), 255)
    return tl.where(step > 0, table, level)


@triton.jit
def _curve(pixel, curve):
    """See `Layer.curve`."""
    low, add, flip, keep = tl.load(curve), tl.load(curve + 1), tl.load(curve + 2), tl.load(curve + 3)
    return tl.where(pixel < low, tl.minimum(pixel + add, 255), pixel ^ flip) & keep


@triton.jit
def _blend(pixel, other, factor):
    """See `ops._blend`; the clamp to ±255 keeps product and sum two roundings."""
    change = (pixel - other) * factor.to(tl.float32, bitcast=True)
    blended = tl.minimum(tl.maximum(change, -255.0), 255.0) + other
    return tl.minimum(tl.maximum(blended, 0.0), 255.0).to(tl.int32)


@triton.jit
def _cutout(pixel, row, column, box):
    """See `Layer.box`."""
    rows = (row >= tl.load(box)) & (row < tl.load(box + 2))
    columns = (column >= tl.load(box + 1)) & (column < tl.load(box + 3))
    return tl.where(rows & columns, _FILL, pixel)
