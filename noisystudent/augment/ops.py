"""Does the noise: batched uint8 in, uint8 out, per-image operations, equal to the Pillow operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from noisystudent.augment.plan import Plan
from noisystudent.augment.policies import Op
from noisystudent.augment.program import FILL, Layer, Program, compile_plan
from noisystudent.errors import InputError

BLOCK = 2**24
"""Pixel values noised at a time on a CPU: bounds the memory of int64 indices."""


def apply(images: Tensor, plan: Plan) -> Tensor:
    """Noise a batch: crop and flip, RandAugment's operations, cutout; crop and flip last if the policy asks.

    Look-up tables, squares and geometry give the Pillow operation's pixels, blends are within 1 grey level
    of them; pixels from outside the image are 128. Deterministic, and the same on every device.

    Args:
        images: (B, 3, S, S) uint8. Not changed.
        plan: of B images of side S.

    Raises:
        InputError: images that the plan does not fit.
    """
    expected = (len(plan), 3, plan.resolution, plan.resolution)
    if images.dtype != torch.uint8 or tuple(images.shape) != expected:
        found = f"{images.dtype} {tuple(images.shape)}"
        raise InputError(f"images to noise are {found}; this plan fits torch.uint8 {expected}")
    if images.device.type != "cpu":
        return run(images, compile_plan(plan, images.device, grouped=False))
    block = max(1, BLOCK // (3 * plan.resolution**2))
    parts = [slice(start, start + block) for start in range(0, max(1, len(plan)), block)]
    programs = (compile_plan(plan.rows(rows.start, rows.stop), images.device, grouped=True) for rows in parts)
    return torch.cat([run(images[rows], program) for rows, program in zip(parts, programs, strict=True)])


def run(images: Tensor, program: Program) -> Tensor:
    """Noise a batch (B, 3, S, S) uint8 by a compiled plan; ungrouped, it can be captured in a CUDA graph."""
    if program.source is not None and not program.crop_last:
        images = _crop_flip(images, *program.source)
    for layer in program.layers:
        images = _operate(images, layer, program.grey)
    if program.restore is not None:
        images = images.index_select(0, program.restore)
    if program.box is not None:
        images = _cutout(images, program.box)
    if program.source is not None and program.crop_last:
        images = _crop_flip(images, *program.source)
    return images


def _operate(images: Tensor, layer: Layer, grey: int | None) -> Tensor:
    """One operation for each image."""
    if layer.order is not None:
        images = images.index_select(0, layer.order)
    act = partial(_act, layer)
    images = act(images, Op.AUTO_CONTRAST, Op.AUTO_CONTRAST, _auto_contrast)
    images = act(images, Op.EQUALIZE, Op.EQUALIZE, _equalize)
    images = act(images, Op.CONTRAST, Op.CONTRAST, partial(_contrast, grey=grey), layer.factor)
    images = act(images, Op.INVERT, Op.BRIGHTNESS, _look_up, layer.table)
    images = act(images, Op.ROTATE, Op.TRANSLATE_Y, _affine, layer.matrix)
    images = act(images, Op.COLOR, Op.COLOR, _color, layer.factor)
    images = act(images, Op.SHARPNESS, Op.SHARPNESS, _sharpness, layer.factor)
    return act(images, Op.CUTOUT, Op.CUTOUT, _cutout, layer.box)


def _act(
    layer: Layer, images: Tensor, first: Op, last: Op, kernel: Callable[..., Tensor], *parameters: Tensor
) -> Tensor:
    """Images with `kernel` applied to the rows whose operation is one of first … last."""
    if layer.bounds is None:  # every row is computed, the chosen ones are kept
        chosen = (layer.op >= first) & (layer.op <= last)
        return torch.where(chosen[:, None, None, None], kernel(images, *parameters), images)
    rows = slice(layer.bounds[first], layer.bounds[last + 1])
    if rows.start < rows.stop:
        images[rows] = kernel(images[rows], *(parameter[rows] for parameter in parameters))
    return images


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """New grey levels from tables uint8: (n, 3, 256), or (n, 256) for all channels alike."""
    if tables.dim() == 2:
        tables = tables[:, None].expand(-1, 3, -1)
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def _auto_contrast(images: Tensor) -> Tensor:
    """Stretch each channel to 0 … 255; a flat one stays."""
    low, high = (extreme.double() for extreme in images.flatten(2).aminmax(dim=2, keepdim=True))  # (n, 3, 1)
    grey = torch.arange(256, dtype=torch.float64, device=images.device)
    # Pillow's order decides some truncations: divide (a Python number over a tensor multiplies by its
    # reciprocal), multiply, subtract, in double precision
    scale = grey[-1] / (high - low).clamp(min=1.0)
    stretched = (grey * scale + -low * scale).clamp(0, 255)
    return _look_up(images, torch.where(high > low, stretched, grey).to(torch.uint8))


def _equalize(images: Tensor) -> Tensor:
    """Flatten each channel's histogram by Pillow's integer rule."""
    pixels = images.flatten(2).long()  # (n, 3, S·S)
    count = pixels.new_zeros((*pixels.shape[:2], 256))
    count.scatter_add_(2, pixels, pixels.new_ones(()).expand_as(pixels))
    brightest = count.gather(2, pixels.amax(dim=2, keepdim=True))
    step = (pixels.shape[2] - brightest) // 255  # (n, 3, 1)
    darker = count.cumsum(2) - count
    table = (step // 2 + darker) // step.clamp(min=1)
    grey = torch.arange(256, device=images.device)
    table = torch.where(step > 0, table.clamp(max=255), grey).to(torch.uint8)
    return table.gather(2, pixels).view_as(images)


def _grey(images: Tensor) -> Tensor:
    """Luma (n, S, S) int32 of ITU-R 601, in Pillow's 16-bit fixed point."""
    red, green, blue = images.to(torch.int32).unbind(1)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


def _contrast(images: Tensor, factor: Tensor, *, grey: int | None) -> Tensor:
    """Blend with one grey level: `grey`, or the mean luma of each image, rounded. factor is (n,)."""
    if grey is None:
        luma = _grey(images).flatten(1)
        pixels = luma.shape[1]
        mean = ((2 * luma.sum(1) + pixels) // (2 * pixels)).float()
    else:
        mean = torch.full_like(factor, grey)
    level = torch.arange(256, dtype=torch.float32, device=images.device)
    table = _blend(mean[:, None], level, factor[:, None])  # (n, 256)
    return _look_up(images, table)


def _blend(degenerate: Tensor, original: Tensor, factor: Tensor) -> Tensor:
    """degenerate + factor · (original - degenerate) in float32, clipped and truncated to uint8."""
    blended = (original - degenerate).mul_(factor).add_(degenerate).clamp_(0, 255)
    return blended.to(torch.int32).to(torch.uint8)  # twice as fast on a CPU as the direct cast


def _color(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each pixel with its luma. factor is (n,)."""
    return _blend(_grey(images)[:, None].float(), images.float(), factor[:, None, None, None])


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the 3×3 smoothing (centre 5, others 1, over 13); border pixels stay. factor is (n,)."""
    wide = images.to(torch.int32)
    lines = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    total = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:] + 4 * wide[..., 1:-1, 1:-1]
    smooth = ((total + 6) * 5042) >> 16  # round(total / 13), exact up to 13 · 255
    inner = wide[..., 1:-1, 1:-1].float()
    result = images.clone()
    result[..., 1:-1, 1:-1] = _blend(smooth.float(), inner, factor[:, None, None, None])
    return result


def _affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Nearest-neighbour affine map by fixed-point matrices (n, 6) int32; grey outside."""
    side = images.shape[-1]
    line = torch.arange(side, dtype=torch.int32, device=images.device)
    a, b, c, d, e, f = matrix[:, :, None].unbind(1)  # (n, 1) each
    column = ((a * line + c)[:, None, :] + (b * line)[:, :, None]) >> 16
    row = ((d * line + f)[:, None, :] + (e * line)[:, :, None]) >> 16
    # a frame one pixel wide stands for all that is outside: no mask is needed
    framed = functional.pad(images, (1, 1, 1, 1), value=FILL)
    index = row.clamp_(-1, side).mul_(side + 2).add_(column.clamp_(-1, side)).add_(side + 3)
    return _gather(framed, index.long(), side)


def _gather(images: Tensor, index: Tensor, side: int) -> Tensor:
    """Pixels at flat positions index (n, S, S) int64, the same in each channel."""
    flat = images.flatten(2)
    chosen = flat.gather(2, index.flatten(1)[:, None].expand(-1, flat.shape[1], -1))
    return chosen.view(*flat.shape[:2], side, side)


def _crop_flip(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Take rows (n, S) and columns (n, S) int64 of each image."""
    side = images.shape[-1]
    return _gather(images, rows[:, :, None] * side + columns[:, None, :], side)


def _cutout(images: Tensor, box: Tensor) -> Tensor:
    """Grey the pixels inside boxes (n, 4): top, left, bottom, right."""
    line = torch.arange(images.shape[-1], dtype=torch.int32, device=images.device)
    top, left, bottom, right = box[:, :, None].unbind(1)
    rows = ((line >= top) & (line < bottom)).to(torch.uint8) * 255
    columns = ((line >= left) & (line < right)).to(torch.uint8) * 255
    inside = rows[:, None, :, None] & columns[:, None, None, :]  # (n, 1, S, S), 0 or 255
    return (images & ~inside) | (inside & FILL)
