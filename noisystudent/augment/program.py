"""Compiled noise plans: the form that the pixel kernels read, one row of 32-bit words for each image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.augment.plan import Plan
from noisystudent.augment.policies import Op, Policy

FILL = 128
"""Grey level of cutout squares and of pixels that come from outside the image."""

# A row starts with 8 words for the image. Then come 16 words for each operation; word 0 is the `Op` number.
MOVE, SQUARE, HEAD = slice(0, 4), slice(4, 8), 8
FACTOR, CURVE, MATRIX, BOX, WORDS = 1, slice(2, 6), slice(6, 12), slice(12, 16), 16


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation for each image.

    Attributes:
        words: (B, 16) int32, read through the properties below.
        bounds: 18 row numbers, if the rows are sorted by operation: rows bounds[o] … bounds[o + 1] - 1 have
            operation number o. None: the rows are not sorted, and every kernel computes every row.
    """

    words: Tensor
    bounds: tuple[int, ...] | None

    @property
    def op(self) -> Tensor:
        """(B,) int32, `Op` numbers."""
        return self.words[:, 0]

    @property
    def factor(self) -> Tensor:
        """(B,) float32, factor of the blend operations."""
        return self.words[:, FACTOR].view(torch.float32)

    @property
    def curve(self) -> Tensor:
        """(B, 4) int32 low, add, flip, keep, each 0 … 255, of operations on grey levels.

        Level v becomes min(v + add, 255) if v < low, otherwise v ^ flip. Then `& keep` is applied.
        """
        return self.words[:, CURVE]

    @property
    def matrix(self) -> Tensor:
        """(B, 3, 2) int32 in 16.16 fixed point, of geometric operations.

        The source position of an output pixel is column · matrix[0] + row · matrix[1] + matrix[2]. It is a
        (column, row) of the image with a frame one pixel wide.
        """
        return self.words[:, MATRIX].view(-1, 3, 2)

    @property
    def box(self) -> Tensor:
        """(B, 2, 2) int32 of Cutout's square: first row and column, then row and column after the last."""
        return self.words[:, BOX].view(-1, 2, 2)


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled plan on a device.

    Attributes:
        policy: policy of the plan.
        words: (B, 8 + 16 N) int32: `move`, `square`, then each `layer`.
        order: (N + 1, B) int64. Entry i lists which rows of layer i - 1 go into the rows of layer i; entry 0
            lists rows of the images, and entry N gives the rows of the result. None: not grouped.
        bounds: `Layer.bounds` of each layer. None: not grouped.
    """

    policy: Policy
    words: Tensor
    order: Tensor | None
    bounds: tuple[tuple[int, ...], ...] | None

    @property
    def num_ops(self) -> int:
        """N, number of layers."""
        return (self.words.shape[1] - HEAD) // WORDS

    @property
    def move(self) -> Tensor:
        """(B, 2, 2) int32, (step, start) by (rows, columns): line i is copied from line step · i + start."""
        return self.words[:, MOVE].view(-1, 2, 2)

    @property
    def square(self) -> Tensor:
        """(B, 2, 2) int32 of the cutout that every image gets, in the form of `Layer.box`."""
        return self.words[:, SQUARE].view(-1, 2, 2)

    def layer(self, number: int) -> Layer:
        """Layer `number` (0 … N-1): one operation for each image."""
        start = HEAD + number * WORDS
        bounds = None if self.bounds is None else self.bounds[number]
        return Layer(self.words[:, start : start + WORDS], bounds)

    def part(self, number: Tensor, rows: int) -> Program:
        """Program of part `number` of an ungrouped program that consists of equal parts.

        The number is a () int64 tensor on the device, so a captured CUDA graph can take another part in each
        replay.
        """
        parts = self.words.view(-1, rows, self.words.shape[1])
        return replace(self, words=parts.index_select(0, number.view(1))[0])

    def load(self, other: Program) -> None:
        """Copy the words of another program into this one, in place, where a captured CUDA graph reads them.

        Args:
            other: ungrouped program of the same policy and batch size, on any device.
        """
        self.words.copy_(other.words, non_blocking=True)


def compile_plan(plan: Plan, device: torch.device, grouped: bool) -> Program:
    """Compile a plan to one small tensor, which is copied to a GPU at once, from pinned memory.

    Args:
        plan: see `plan.draw`.
        device: device of the images.
        grouped: True: sort the images by operation, so that each kernel computes only its own rows. This is
            the least work, but the shapes change from step to step. False: every kernel computes all rows,
            and the chosen ones are kept. The shapes are fixed, as CUDA graphs need it. The pixels are equal.
    """
    count, num_ops = plan.op.shape
    shape = (count, HEAD + num_ops * WORDS)
    host = torch.empty(shape, dtype=torch.int32, pin_memory=device.type == "cuda")
    words = host.numpy()  # shares memory with `host`: numpy writes into the pinned memory
    words[:, MOVE] = _moves(plan).T
    words[:, SQUARE] = _boxes(plan.square[:, :2].T, plan.square[:, 2]).T
    layers = words[:, HEAD:].reshape(count, num_ops, WORDS)
    _write(layers.T, plan)
    order, bounds = _sort(layers.swapaxes(0, 1)) if grouped and num_ops else (None, None)
    return Program(
        policy=plan.policy,
        words=host.to(device, non_blocking=True),
        order=None if order is None else torch.from_numpy(order).to(device),
        bounds=bounds,
    )


def _moves(plan: Plan) -> NDArray[np.int64]:
    """`Program.move` (4, B); the kernel reflects lines that are outside the image."""
    (down, right), last = plan.shift.T, plan.resolution - 1
    # A flipped image is read from its last column backwards: step -1, start shifted by `last`.
    return np.stack([np.ones_like(down), 1 - 2 * plan.flip, down, right + plan.flip * last])


def _write(words: NDArray[np.int32], plan: Plan) -> None:
    """Fill the words (16, N, B) of all layers."""
    op, argument = plan.op.T, plan.argument.T  # (N, B)
    half = np.where(op == Op.CUTOUT, argument, 0).astype(np.int64)  # half the side, in pixels
    words[0] = op
    words[FACTOR] = np.ascontiguousarray(argument).view(np.int32)  # the bits of float32; `Layer.factor`
    words[CURVE] = _curves(op, argument)
    words[MATRIX] = _matrices(op, argument.astype(np.float64), plan.resolution)
    words[BOX] = _boxes(plan.centre.T, 2 * half)


def _sort(layers: NDArray[np.int32]) -> tuple[NDArray[np.int64], tuple[tuple[int, ...], ...]]:
    """Sort words (N, B, 16) of each layer by operation, in place; return `Program.order` and `bounds`."""
    order, bounds, place = [], [], np.arange(layers.shape[1])  # place: row of each image in the last layer
    for words in layers:
        rows = np.argsort(words[:, 0], kind="stable")
        words[:] = words[rows]
        order.append(place[rows])
        bounds.append(tuple(np.searchsorted(words[:, 0], np.arange(len(Op) + 1)).tolist()))
        place = np.argsort(rows)  # the inverse permutation
    return np.stack([*order, place]), tuple(bounds)


def _curves(op: NDArray[np.int64], argument: NDArray[np.float32]) -> tuple[NDArray[np.int64], ...]:
    """`Layer.curve` (4 times (N, B)) of invert, posterize, solarize, solarize-add; of others the identity."""
    whole = argument.astype(np.int64)
    solarize, solarize_add = op == Op.SOLARIZE, op == Op.SOLARIZE_ADD
    low = np.where(solarize, whole & 255, np.where(solarize_add, 128, 0))  # 256 gives 0: unchanged
    add = np.where(solarize_add, np.minimum(whole, 255), 0)
    flip = np.where((op == Op.INVERT) | (solarize & (whole < 256)), 255, 0)
    bits = np.where(op == Op.POSTERIZE, whole, 8)
    return low, add, flip, 256 - (1 << (8 - bits))


def _matrices(op: NDArray[np.int64], argument: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """`Layer.matrix` (6, N, B): pixel centres at +0.5, coordinates rounded to 1/65536, as in Pillow."""
    angle = np.radians(np.where(op == Op.ROTATE, argument, 0.0))
    cos, sin = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
    nearest = np.floor(argument + 0.5)  # translations are by whole pixels
    # Pillow's affine coefficients: column = a·x + b·y + c, row = d·x + e·y + f, with a = e = cos. Rotations
    # are about the centre of the image.
    b = np.where(op == Op.SHEAR_X, argument, -sin)
    c = np.where(op == Op.TRANSLATE_X, nearest, (side - (cos - sin) * side) / 2)
    d = np.where(op == Op.SHEAR_Y, argument, sin)
    f = np.where(op == Op.TRANSLATE_Y, nearest, (side - (sin + cos) * side) / 2)
    c += cos * 0.5 + b * 0.5  # from corners to centres of pixels
    f += d * 0.5 + cos * 0.5
    fixed = np.floor(np.stack([cos, d, b, cos, c, f]) * 65536.0 + 0.5)
    fixed[4:] += 65536.0  # the frame shifts the image by one pixel
    return fixed


def _boxes(centre: NDArray[np.int64], side: NDArray[np.int64]) -> NDArray[np.int64]:
    """`Layer.box` (4, …) of squares around centres (2, …); a square may extend outside the image."""
    start = centre - side // 2
    return np.concatenate([start, start + side])
