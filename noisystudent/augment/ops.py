"""Pixel kernels of the input noise: batched uint8 in and out, with the pixels of the Pillow operations."""

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
"""Number of pixel values that a CPU processes at a time; it bounds the memory of the int64 indices."""


def apply(images: Tensor, plan: Plan) -> Tensor:
    """Apply a noise plan to a batch of images, each image with its own operations.

    The order is crop and flip, RandAugment's operations, cutout; crop and flip come last if
    `policy.crop_last` is set. Look-up tables, cutout squares and geometric operations give exactly the pixels
    of the Pillow operations. Blends differ from Pillow by at most 1 grey level. Pixels from outside the image
    are 128. The result is deterministic and the same on every device.

    Args:
        images: (B, 3, S, S) uint8. Not changed.
        plan: noise of B images of side S.

    Returns:
        (B, 3, S, S) uint8.

    Raises:
        InputError: dtype or shape of the images differs from what the plan needs.
    """
    expected = (len(plan), 3, plan.resolution, plan.resolution)
    if images.dtype != torch.uint8 or tuple(images.shape) != expected:
        given = f"{images.dtype} {tuple(images.shape)}"
        raise InputError(f"images to noise are {given}; this plan needs torch.uint8 {expected}")
    if images.device.type != "cpu":
        return run(images, compile_plan(plan, images.device, grouped=False))
    block = max(1, BLOCK // (3 * plan.resolution**2))
    noised = []
    # Inference mode saves a sixth of the overhead. `cat` runs outside of it, so the result is an ordinary
    # tensor that autograd accepts.
    with torch.inference_mode():
        for start in range(0, max(1, len(plan)), block):  # an empty batch is one block: `cat` needs a tensor
            program = compile_plan(plan.rows(start, start + block), images.device, grouped=True)
            noised.append(run(images[start : start + block], program))
    return torch.cat(noised)


def run(images: Tensor, program: Program) -> Tensor:
    """Apply a compiled plan to a batch of images.

    The shapes of an ungrouped program are fixed. So this function can be captured in a CUDA graph, and it can
    be compiled without a graph break; the pixels stay the same.

    Args:
        images: (B, 3, S, S) uint8. Not changed.
        program: compiled plan of B images of side S, on the same device.

    Returns:
        (B, 3, S, S) uint8.
    """
    policy = program.policy
    if policy.moves and not policy.crop_last:
        images = _crop_flip(images, program.move)
    for number in range(program.num_ops):
        if program.order is not None:
            images = images.index_select(0, program.order[number])
        images = _operate(images, program.layer(number), policy.quirks == "official")
    if program.order is not None:
        images = images.index_select(0, program.order[-1])  # back to the order of the batch
    if policy.cutout:
        images = _cutout(images, program.square)
    if policy.moves and policy.crop_last:
        images = _crop_flip(images, program.move)
    return images


def _operate(images: Tensor, layer: Layer, official: bool) -> Tensor:
    """Apply one operation to each image: (B, 3, S, S) uint8 -> the same shape."""
    replace = partial(_replace, layer)
    # The first five kernels compute what some operations need: tables of grey levels, and images to blend
    # with. Each of the others applies one family of neighbouring `Op` numbers.
    tables = images.new_zeros((len(images), 3, 256))
    tables = replace(tables, Op.AUTO_CONTRAST, Op.AUTO_CONTRAST, _auto_contrast_tables, images)
    tables = replace(tables, Op.EQUALIZE, Op.EQUALIZE, _equalize_tables, images)
    other = torch.zeros_like(images)  # the image to blend with; it is black for brightness
    other = replace(other, Op.CONTRAST, Op.CONTRAST, partial(_contrast_level, official=official), images)
    other = replace(other, Op.COLOR, Op.COLOR, _luma, images)
    other = replace(other, Op.SHARPNESS, Op.SHARPNESS, _smooth, images)
    # With sorted rows this fills `images` in place: each row once, and `run` passes a copy (index_select).
    noised = replace(images, Op.AUTO_CONTRAST, Op.EQUALIZE, _look_up, images, tables)
    noised = replace(noised, Op.INVERT, Op.SOLARIZE_ADD, _curve, images, layer.curve)
    noised = replace(noised, Op.BRIGHTNESS, Op.SHARPNESS, _blend, images, other, layer.factor)
    noised = replace(noised, Op.ROTATE, Op.TRANSLATE_Y, _affine, images, layer.matrix)
    return replace(noised, Op.CUTOUT, Op.CUTOUT, _cutout, images, layer.box)


def _replace(
    layer: Layer, old: Tensor, first: Op, last: Op, kernel: Callable[..., Tensor], *inputs: Tensor
) -> Tensor:
    """Return `old` with the output of `kernel` in the rows whose operation is one of first … last.

    Args:
        layer: the operation of each row.
        old: (B, …), may be changed in place.
        first: smallest operation number.
        last: largest operation number.
        kernel: rows of the inputs -> the same rows of the result.
        *inputs: (B, …) each.
    """
    if layer.bounds is None:  # fixed shapes: compute every row, then keep the chosen ones
        chosen = (layer.op >= first.value) & (layer.op <= last.value)
        return torch.where(chosen.view(-1, *[1] * (old.dim() - 1)), kernel(*inputs), old)
    # The rows are sorted by operation, so the chosen ones are a slice that can be filled in place.
    rows = slice(layer.bounds[first], layer.bounds[last + 1])
    if rows.start < rows.stop:
        old[rows] = kernel(*[tensor[rows] for tensor in inputs])
    return old


def _auto_contrast_tables(images: Tensor) -> Tensor:
    """Tables (n, 3, 256) that stretch each channel to 0 … 255; a channel of one grey level is kept."""
    # int32, because torch.compile on a CPU gives a wrong minimum of bytes (pytorch/pytorch#191499).
    pixels = images.flatten(2).to(torch.int32)
    low, high = pixels.amin(2, keepdim=True).double(), pixels.amax(2, keepdim=True).double()  # (n, 3, 1)
    level = torch.arange(256, dtype=torch.float64, device=images.device)
    # Results are truncated, so the order of operations matters. As in Pillow: divide, multiply, subtract, in
    # double precision. `level[-1]` is a tensor, because torch computes a Python number over a tensor with the
    # reciprocal. The clamps at 0 change no value, but they keep a compiler from fusing the product and the
    # difference into one rounding.
    scale = torch.where(high > low, level[-1] / (high - low), 1.0)
    offset = (low * (high > low) * scale).clamp_(min=0)
    return (level * scale).clamp_(min=0).sub_(offset).clamp_(0, 255).to(torch.uint8)


def _equalize_tables(images: Tensor) -> Tensor:
    """Tables (n, 3, 256) that equalise the histogram of each channel by Pillow's integer rule."""
    pixels = images.flatten(2).to(torch.int32)  # (n, 3, S·S)
    count = pixels.new_zeros((*pixels.shape[:2], 256))
    count.scatter_add_(2, pixels.long(), count.new_ones(()).expand_as(pixels))
    # Pillow leaves the pixels of the brightest level out of the step.
    brightest = count.gather(2, pixels.amax(2, keepdim=True).long())
    step = (pixels.shape[2] - brightest) // 255  # (n, 3, 1)
    darker = count.cumsum(2, dtype=torch.int32) - count
    table = ((step // 2 + darker) // step.clamp(min=1)).clamp_(max=255)
    level = torch.arange(256, dtype=torch.int32, device=images.device)
    return torch.where(step > 0, table, level).to(torch.uint8)


def _contrast_level(images: Tensor, official: bool) -> Tensor:
    """Grey level (n, 1, 1, 1) that Contrast blends with: the rounded mean luma, or the published code's."""
    area = images.shape[2] * images.shape[3]
    if official:  # see `Policy.quirks`
        return images.new_full((len(images), 1, 1, 1), min(area // 256, 255))
    total = _luma(images).sum((2, 3), keepdim=True)
    return ((2 * total + area) // (2 * area)).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """Luma (n, 1, S, S) of ITU-R 601, in Pillow's 16-bit fixed point."""
    red, green, blue = images[:, None].to(torch.int32).unbind(2)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).to(torch.uint8)


def _smooth(images: Tensor) -> Tensor:
    """Rounded mean of 3×3 pixels with weight 5 in the centre, 1 elsewhere, sum 13; border pixels are kept."""
    wide = images.to(torch.int32)  # the sums exceed a byte
    lines = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    total = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:] + 4 * wide[..., 1:-1, 1:-1]
    result = images.clone()
    result[..., 1:-1, 1:-1] = ((total + 6) * 5042) >> 16  # round(total / 13), exact up to 13 · 255
    return result


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Map the grey levels of images (n, 3, S, S) by tables (n, 3, 256)."""
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def _curve(images: Tensor, curve: Tensor) -> Tensor:
    """Invert, posterize, solarize or solarize-add images by numbers (n, 4), see `Layer.curve`."""
    low, add, flip, keep = curve.to(torch.uint8)[..., None, None, None].unbind(1)
    # A mask is made of bytes, where 255 means true: on a CPU `torch.where` takes longer than all lines here.
    below = (low - images.minimum(low)).clamp_(max=1).neg_()
    add = below & add
    return (images.minimum(255 - add).add_(add) ^ (flip & ~below)).bitwise_and_(keep)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Compute other + factor · (images - other) in float32 with factor (n,), clip and truncate."""
    other = other.float()
    # The clamp to ±255 changes no result, because `images` and `other` are both in 0 … 255. As in
    # `_auto_contrast_tables`, it keeps a compiler from fusing the two roundings.
    change = (images.float() - other).mul_(factor[:, None, None, None]).clamp_(-255, 255)
    return change.add_(other).clamp_(0, 255).to(torch.int32).to(torch.uint8)  # faster than the direct cast


def _affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Nearest-neighbour affine map by matrices (n, 3, 2), see `Layer.matrix`; `FILL` outside the image."""
    side = images.shape[-1]
    line = torch.arange(side, dtype=torch.int32, device=images.device)
    of_column, of_row, start = matrix[..., None].unbind(1)  # (n, 2, 1) each
    # All coordinates outside are clamped to a frame one pixel wide, so no mask is needed.
    framed = functional.pad(images, (1, 1, 1, 1), value=FILL)
    source = (of_column * line + start)[:, :, None, :] + (of_row * line)[..., None]  # (n, 2, S, S)
    column, row = (source >> 16).clamp_(0, side + 1).unbind(1)
    return _gather_pixels(framed, row, column)


def _crop_flip(images: Tensor, move: Tensor) -> Tensor:
    """Shift the window over the reflected image and mirror it by moves (n, 2, 2), see `Program.move`."""
    last = images.shape[-1] - 1
    line = torch.arange(last + 1, dtype=torch.int32, device=images.device)
    step, start = move[..., None].unbind(1)  # (n, 2, 1) each
    # abs() reflects at line 0, last - abs(last - …) reflects at the last line.
    row, column = (last - (last - (line * step + start).abs_()).abs_()).unbind(1)  # (n, S) each
    return _gather_pixels(images, row[:, :, None], column[:, None, :])


def _gather_pixels(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Pixels (n, 3, S, S) at row and column, int32 that broadcast to (n, S, S), the same in each channel."""
    index = column.add(row, alpha=images.shape[-1])
    flat = index.flatten(1).long()[:, None].expand(-1, 3, -1)
    return images.flatten(2).gather(2, flat).view(-1, 3, *index.shape[1:])


def _cutout(images: Tensor, box: Tensor) -> Tensor:
    """Set the pixels inside boxes (n, 2, 2), see `Layer.box`, to `FILL`."""
    line = torch.arange(images.shape[-1], dtype=torch.int32, device=images.device)
    start, stop = box[..., None].unbind(1)  # (n, 2, 1) each
    rows, columns = (((line >= start) & (line < stop)).to(torch.uint8) * 255).unbind(1)  # (n, S) each
    inside = rows[:, None, :, None] & columns[:, None, None, :]  # a mask of bytes, as in `_curve`
    return (images & ~inside) | (inside & FILL)
