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

BLOCK = 2**22
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
    noised = []
    with torch.inference_mode():  # a sixth less overhead; what `cat` makes outside is an ordinary tensor
        for start in range(0, max(1, len(plan)), block):
            program = compile_plan(plan.rows(start, start + block), images.device, grouped=True)
            noised.append(run(images[start : start + block], program))
    return torch.cat(noised)


def run(images: Tensor, program: Program) -> Tensor:
    """Noise a batch (B, 3, S, S) uint8 by a compiled plan.

    Ungrouped, its shapes are fixed: it can be captured in a CUDA graph, and compiled without a graph break to
    the same pixels.
    """
    policy = program.policy
    if policy.moves and not policy.crop_last:
        images = _crop_flip(images, program.move)
    for number in range(program.num_ops):
        if program.order is not None:
            images = images.index_select(0, program.order[number])
        images = _operate(images, program.layer(number), policy.quirks == "official")
    if program.order is not None:
        images = images.index_select(0, program.order[-1])
    if policy.cutout:
        images = _cutout(images, program.square)
    if policy.moves and policy.crop_last:
        images = _crop_flip(images, program.move)
    return images


def _operate(images: Tensor, layer: Layer, official: bool) -> Tensor:
    """One operation for each image."""
    replace = partial(_replace, layer)
    tables = images.new_zeros((len(images), 3, 256))
    tables = replace(tables, Op.AUTO_CONTRAST, Op.AUTO_CONTRAST, _stretch, images)
    tables = replace(tables, Op.EQUALIZE, Op.EQUALIZE, _flatten, images)
    other = torch.zeros_like(images)  # what is blended with; black for brightness
    other = replace(other, Op.CONTRAST, Op.CONTRAST, partial(_level, official=official), images)
    other = replace(other, Op.COLOR, Op.COLOR, _luma, images)
    other = replace(other, Op.SHARPNESS, Op.SHARPNESS, _smooth, images)
    noised = replace(images, Op.AUTO_CONTRAST, Op.EQUALIZE, _look_up, images, tables)
    noised = replace(noised, Op.INVERT, Op.SOLARIZE_ADD, _curve, images, layer.curve)
    noised = replace(noised, Op.BRIGHTNESS, Op.SHARPNESS, _blend, images, other, layer.factor)
    noised = replace(noised, Op.ROTATE, Op.TRANSLATE_Y, _affine, images, layer.matrix)
    return replace(noised, Op.CUTOUT, Op.CUTOUT, _cutout, images, layer.box)


def _replace(
    layer: Layer, old: Tensor, first: Op, last: Op, kernel: Callable[..., Tensor], *inputs: Tensor
) -> Tensor:
    """`old`, but what `kernel` makes of the inputs in the rows whose operation is one of first … last."""
    if layer.bounds is None:  # every row is computed, the chosen ones are kept
        chosen = (layer.op >= first.value) & (layer.op <= last.value)
        return torch.where(chosen.view(-1, *[1] * (old.dim() - 1)), kernel(*inputs), old)
    rows = slice(layer.bounds[first], layer.bounds[last + 1])
    if rows.start < rows.stop:  # sorted rows: in place
        old[rows] = kernel(*[one[rows] for one in inputs])
    return old


def _stretch(images: Tensor) -> Tensor:
    """Tables (n, 3, 256) that stretch each channel to 0 … 255; a flat one stays."""
    # as int32: compiled for a CPU, the minimum of bytes is wrong (pytorch/pytorch#191499)
    pixels = images.flatten(2).to(torch.int32)
    low, high = pixels.amin(2, keepdim=True).double(), pixels.amax(2, keepdim=True).double()  # (n, 3, 1)
    level = torch.arange(256, dtype=torch.float64, device=images.device)
    # Pillow's order decides some truncations: divide (a Python number over a tensor multiplies by its
    # reciprocal), multiply, subtract, in double precision. The clamps at 0 change nothing but keep a
    # compiler from rounding product and difference in one.
    scale = torch.where(high > low, level[-1] / (high - low), 1.0)
    offset = (low * (high > low) * scale).clamp_(min=0)
    return (level * scale).clamp_(min=0).sub_(offset).clamp_(0, 255).to(torch.uint8)


def _flatten(images: Tensor) -> Tensor:
    """Tables (n, 3, 256) that flatten each channel's histogram by Pillow's integer rule."""
    pixels = images.flatten(2).to(torch.int32)  # (n, 3, S·S)
    count = pixels.new_zeros((*pixels.shape[:2], 256))
    count.scatter_add_(2, pixels.long(), count.new_ones(()).expand_as(pixels))
    brightest = count.gather(2, pixels.amax(2, keepdim=True).long())
    step = (pixels.shape[2] - brightest) // 255  # (n, 3, 1)
    darker = count.cumsum(2, dtype=torch.int32) - count
    table = ((step // 2 + darker) // step.clamp(min=1)).clamp_(max=255)
    level = torch.arange(256, dtype=torch.int32, device=images.device)
    return torch.where(step > 0, table, level).to(torch.uint8)


def _level(images: Tensor, official: bool) -> Tensor:
    """(n, 1, 1, 1): the mean luma, rounded; or the published code's level."""
    area = images.shape[2] * images.shape[3]
    if official:
        return images.new_full((len(images), 1, 1, 1), min(area // 256, 255))
    total = _luma(images).sum((2, 3), keepdim=True)
    return ((2 * total + area) // (2 * area)).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """(n, 1, S, S) of ITU-R 601, in Pillow's 16-bit fixed point."""
    red, green, blue = images[:, None].to(torch.int32).unbind(2)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).to(torch.uint8)


def _smooth(images: Tensor) -> Tensor:
    """The mean of 3×3 pixels (centre 5, others 1, over 13), rounded; border pixels stay."""
    wide = images.to(torch.int32)
    lines = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    total = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:] + 4 * wide[..., 1:-1, 1:-1]
    result = images.clone()
    result[..., 1:-1, 1:-1] = ((total + 6) * 5042) >> 16  # round(total / 13), exact up to 13 · 255
    return result


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """New grey levels from tables (n, 3, 256)."""
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def _curve(images: Tensor, curve: Tensor) -> Tensor:
    """Invert, posterize, solarize and solarize-add, by four numbers (n, 4) an image: see `Layer.curve`."""
    low, add, flip, keep = curve.to(torch.uint8)[..., None, None, None].unbind(1)
    # Bytes that are all ones stand for true: on a CPU, `where` takes longer than all these lines together.
    below = (low - images.minimum(low)).clamp_(max=1).neg_()
    add = below & add
    return (images.minimum(255 - add).add_(add) ^ (flip & ~below)).bitwise_and_(keep)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """other + factor · (images - other) in float32, clipped and truncated."""
    # Both lie in 0 … 255: the first clamp changes no result, but as in `_stretch` it keeps the two roundings.
    other = other.float()
    change = (images.float() - other).mul_(factor[:, None, None, None]).clamp_(-255, 255)
    return change.add_(other).clamp_(0, 255).to(torch.int32).to(torch.uint8)  # faster than the direct cast


def _affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Nearest-neighbour affine map by matrices (n, 3, 2), see `Layer.matrix`; grey outside."""
    side = images.shape[-1]
    line = torch.arange(side, dtype=torch.int32, device=images.device)
    of_column, of_row, start = matrix[..., None].unbind(1)  # (n, 2, 1) each
    # a frame one pixel wide stands for all that is outside: no mask is needed
    framed = functional.pad(images, (1, 1, 1, 1), value=FILL)
    source = (of_column * line + start)[:, :, None, :] + (of_row * line)[..., None]  # (n, 2, S, S)
    column, row = (source >> 16).clamp_(0, side + 1).unbind(1)
    return _pick(framed, row, column)


def _crop_flip(images: Tensor, move: Tensor) -> Tensor:
    """Shift the window over the reflected image and mirror it by moves (n, 2, 2), see `Program.move`."""
    last = images.shape[-1] - 1
    line = torch.arange(last + 1, dtype=torch.int32, device=images.device)
    step, start = move[..., None].unbind(1)  # (n, 2, 1) each
    row, column = (last - (last - (line * step + start).abs_()).abs_()).unbind(1)  # (n, S) each
    return _pick(images, row[:, :, None], column[:, None, :])


def _pick(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Pixels at row and column, int32 that broadcast to (n, S, S), the same in each channel."""
    index = column.add(row, alpha=images.shape[-1])
    flat = index.flatten(1).long()[:, None].expand(-1, 3, -1)
    return images.flatten(2).gather(2, flat).view(-1, 3, *index.shape[1:])


def _cutout(images: Tensor, box: Tensor) -> Tensor:
    """Grey the pixels inside boxes (n, 2, 2), see `Layer.box`."""
    line = torch.arange(images.shape[-1], dtype=torch.int32, device=images.device)
    start, stop = box[..., None].unbind(1)  # (n, 2, 1) each
    rows, columns = (((line >= start) & (line < stop)).to(torch.uint8) * 255).unbind(1)  # (n, S) each
    inside = rows[:, None, :, None] & columns[:, None, None, :]  # bytes, as in `_curve`
    return (images & ~inside) | (inside & FILL)
