"""Turns a plan into the few small tensors the pixel kernels read: tables, matrices, boxes and indices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.augment.plan import Plan
from noisystudent.augment.policies import Op

FILL = 128
"""Grey level of pixels that come from outside the image, and of cutout."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation for each image.

    Attributes:
        op: (B,) int64, `Op` numbers.
        factor: (B,) float32, the arguments.
        table: (B, 256) uint8, new grey levels of operations that need no look at the image, else the old.
        matrix: (B, 6) int32, source column and row of an output pixel in 16.16 fixed point.
        box: (B, 4) int32, top, left, bottom, right of Cutout's square.
        order: (B,) int64, the rows of the layer before (of the images, for the first) that come here; None
            where every kernel sees every row.
        bounds: where in that order each operation number begins (18 of them); None as well.
    """

    op: Tensor
    factor: Tensor
    table: Tensor
    matrix: Tensor
    box: Tensor
    order: Tensor | None
    bounds: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Program:
    """A plan on a device.

    Attributes:
        layers: the operations of RandAugment.
        restore: (B,) int64 undoes the last layer's order; None where there is none.
        box: (B, 4) int32 of the always-on cutout, or None.
        source: rows (B, S) and columns (B, S) int64 of crop and flip, or None.
        crop_last: see `policies.Policy`.
        grey: the fixed grey level Contrast blends with, or None for the image's own mean.
    """

    layers: tuple[Layer, ...]
    restore: Tensor | None
    box: Tensor | None
    source: tuple[Tensor, Tensor] | None
    crop_last: bool
    grey: int | None

    def tensors(self) -> list[Tensor]:
        """All tensors of the program, in a fixed order."""
        layers = [(one.op, one.factor, one.table, one.matrix, one.box, one.order) for one in self.layers]
        last = (self.restore, self.box, *(self.source or ()))
        return [tensor for group in (*layers, last) for tensor in group if tensor is not None]

    def load(self, other: Program) -> None:
        """Take over, in place, an ungrouped program of the same policy and batch size from any device.

        So a captured CUDA graph of `ops.run` replays with the next step's plan.
        """
        for mine, new in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(new, non_blocking=True)


def compile_plan(plan: Plan, device: torch.device, grouped: bool) -> Program:
    """Lower a plan to tensors on `device`.

    Args:
        plan: see `plan.draw`.
        device: where the images are.
        grouped: sort images by operation, so that each kernel sees its own rows only: the least work, but
            shapes that change from step to step. Otherwise every kernel computes all rows and the chosen
            ones are kept: fixed shapes for CUDA graphs. Pixels are the same.
    """
    policy, side = plan.policy, plan.resolution
    layers, before = [], np.arange(len(plan))  # before: image in each place of the layer before
    for column in range(plan.op.shape[1]):
        order = np.argsort(plan.op[:, column], kind="stable") if grouped else before
        layers.append(_layer(plan, column, order, np.argsort(before)[order] if grouped else None, device))
        before = order
    moves = policy.crop == "pad" or policy.flip
    return Program(
        layers=tuple(layers),
        restore=torch.from_numpy(np.argsort(before)).to(device) if grouped and layers else None,
        box=_tensor(_boxes(plan.square[:, :2], plan.square[:, 2]), device) if policy.cutout else None,
        source=_sources(plan, device) if moves else None,
        crop_last=policy.crop_last,
        grey=min(side * side // 256, 255) if policy.quirks == "official" else None,
    )


def _tensor(array: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


def _layer(
    plan: Plan, column: int, rows: NDArray[np.int64], order: NDArray[np.int64] | None, device: torch.device
) -> Layer:
    op, argument, centre = plan.op[rows, column], plan.argument[rows, column], plan.centre[rows, column]
    half = np.where(op == Op.CUTOUT, argument, 0).astype(np.int64)
    bounds = np.searchsorted(op, np.arange(len(Op) + 1)).tolist() if order is not None else None
    return Layer(
        op=_tensor(op, device),
        factor=_tensor(argument, device),
        table=_tensor(_tables(op, argument), device),
        matrix=_tensor(_matrices(op, argument, plan.resolution), device),
        box=_tensor(_boxes(centre, 2 * half), device),
        order=None if order is None else _tensor(order, device),
        bounds=None if bounds is None else tuple(bounds),
    )


def _tables(op: NDArray[np.int64], argument: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(B, 256) new grey levels of the operations that need no look at the image; others keep theirs."""
    grey = np.arange(256)
    tables = np.tile(grey, (len(op), 1))

    def argument_of(which: Op) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        rows = op == which
        return rows, argument[rows, None]

    rows, _ = argument_of(Op.INVERT)
    tables[rows] = 255 - grey
    rows, bits = argument_of(Op.POSTERIZE)
    tables[rows] = grey & -(1 << (8 - bits.astype(np.int64)))
    rows, threshold = argument_of(Op.SOLARIZE)
    tables[rows] = np.where(grey < threshold, grey, 255 - grey)
    rows, addition = argument_of(Op.SOLARIZE_ADD)
    tables[rows] = np.where(grey < 128, np.minimum(grey + addition, 255), grey)
    rows, factor = argument_of(Op.BRIGHTNESS)
    tables[rows] = np.clip(grey.astype(np.float32) * factor, 0, 255)
    return tables.astype(np.uint8)


def _matrices(op: NDArray[np.int64], argument: NDArray[np.float32], side: int) -> NDArray[np.int32]:
    """(B, 6) fixed-point a, b, c, d, e, f: output pixel (x, y) shows source pixel (ax+by+c, dx+ey+f) >> 16.

    Pixel centres lie at +0.5 and coordinates have 16 fractional bits, as in Pillow's affine transform.
    """
    a, b, c, d, e, f = matrix = np.zeros((6, len(op)))
    a[:], e[:] = 1.0, 1.0
    rows = op == Op.ROTATE
    angle = np.radians(argument[rows].astype(np.float64))
    cos, sin = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
    a[rows], b[rows], d[rows], e[rows] = cos, -sin, sin, cos
    c[rows], f[rows] = (side - (cos - sin) * side) / 2, (side - (sin + cos) * side) / 2
    for which, coefficient in ((Op.SHEAR_X, b), (Op.SHEAR_Y, d)):
        coefficient[op == which] = argument[op == which]
    for which, coefficient in ((Op.TRANSLATE_X, c), (Op.TRANSLATE_Y, f)):
        coefficient[op == which] = np.floor(argument[op == which].astype(np.float64) + 0.5)  # nearest pixel
    c += a * 0.5 + b * 0.5
    f += d * 0.5 + e * 0.5
    return np.floor(matrix.T * 65536.0 + 0.5).astype(np.int32)


def _boxes(centre: NDArray[np.int64], side: NDArray[np.int64]) -> NDArray[np.int32]:
    """(B, 4) top, left, bottom, right of squares around centres (B, 2); they may reach beyond the image."""
    start = centre - (side // 2)[:, None]
    return np.concatenate([start, start + side[:, None]], axis=1).astype(np.int32)


def _sources(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns, (B, S) each, that a reflected crop and then a flip take their pixels from."""
    last = plan.resolution - 1
    line = np.arange(plan.resolution)
    rows, columns = (last - np.abs(last - np.abs(line + plan.shift[:, axis, None])) for axis in (0, 1))
    columns = np.where(plan.flip[:, None], columns[:, ::-1], columns)
    return _tensor(rows, device), _tensor(columns, device)
