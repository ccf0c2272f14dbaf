"""The noise of each image of a batch, drawn into small arrays by pure functions of (policy, seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.augment.policies import DRAWN, Op, Policy, arguments, levels
from noisystudent.errors import InputError
from noisystudent.runtime import generator

# Uniform numbers for each image: crop down, crop right, flip, cutout row, cutout column.
_IMAGE_DRAWS = 5
# For each operation: operation, sign, two for the jitter, applied or not, Cutout row, Cutout column.
_OP_DRAWS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The noise of B square images; row i of each array belongs to image i only.

    Attributes:
        policy: policy from which the plan was drawn.
        resolution: side S of the images in pixels.
        op: (B, N) int64, `Op` numbers in the order in which they are applied.
        argument: (B, N) float32, argument of each operation (see `policies.arguments`).
        centre: (B, N, 2) int64, row and column of the centre of RandAugment's Cutout.
        shift: (B, 2) int64, number of rows down and columns right by which the crop window moves; outside
            the image the window takes pixels of the reflected image.
        flip: (B,) bool, True: mirror left and right after the crop.
        square: (B, 3) int64, row and column of the centre and side of the cutout that every image gets;
            side 0 means no cutout.
    """

    policy: Policy
    resolution: int
    op: NDArray[np.int64]
    argument: NDArray[np.float32]
    centre: NDArray[np.int64]
    shift: NDArray[np.int64]
    flip: NDArray[np.bool_]
    square: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.flip)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays with B rows by field name."""
        names = [field.name for field in fields(self)][2:]  # without policy and resolution
        return {name: getattr(self, name) for name in names}

    def rows(self, start: int, stop: int) -> Plan:
        """Plan of images start … stop-1, for example the part of one process of a global batch."""
        parts = {name: array[start:stop] for name, array in self.arrays().items()}
        return Plan(policy=self.policy, resolution=self.resolution, **parts)


def draw(policy: Policy, seed: int, stream: str, step: int, batch_size: int, *, resolution: int) -> Plan:
    """Draw the noise of one batch.

    One call fills a table (batch_size, width) row by row, and the width depends only on the number of
    operations. So the noise of an image does not depend on the batch size. If one part of a policy is
    switched off, the draws of the other parts do not change.

    Args:
        policy: see `policies.build_policy`.
        seed: seed of the run.
        stream: name of the image set, so that two sets in one step get independent noise.
        step: training step.
        batch_size: B, number of images in the global batch.
        resolution: side S of the images in pixels.
    """
    num_ops = 0 if policy.randaugment is None else policy.randaugment.num_ops
    table = generator(seed, f"augment/{stream}", step).random(
        (batch_size, _IMAGE_DRAWS + _OP_DRAWS * num_ops)
    )
    image, ops = table[:, :_IMAGE_DRAWS], table[:, _IMAGE_DRAWS:].reshape(batch_size, num_ops, _OP_DRAWS)
    op, argument = _draw_ops(policy, ops)
    pad = resolution // 8 if policy.crop == "pad" else 0  # 4 pixels at 32, as is usual on CIFAR
    square = np.full((batch_size, 3), policy.cutout, dtype=np.int64)
    square[:, :2] = _to_integers(image[:, 3:5], resolution)
    return Plan(
        policy=policy,
        resolution=resolution,
        op=op,
        argument=argument,
        centre=_to_integers(ops[:, :, 5:7], resolution),
        shift=_to_integers(image[:, 0:2], 2 * pad + 1) - pad,  # -pad … pad
        flip=(image[:, 2] < 0.5) & policy.flip,
        square=square,
    )


_BLOCK = 256  # rows whose noise is drawn by one generator


def _blocks(rows: NDArray[np.int64]) -> tuple[list[int], NDArray[np.int64]]:
    """Blocks that hold some rows, and the place (B,) of each row in these blocks, one after the other."""
    blocks, at = np.unique(rows // _BLOCK, return_inverse=True)
    return blocks.tolist(), at * _BLOCK + rows % _BLOCK


def draw_rows(policy: Policy, seed: int, stream: str, rows: NDArray[np.int64], *, resolution: int) -> Plan:
    """Draw noise for some rows (B,) of a set, each a pure function of (seed, stream, row); see `draw`."""
    blocks, at = _blocks(rows)
    drawn = join([draw(policy, seed, stream, block, _BLOCK, resolution=resolution) for block in blocks])
    arrays = {name: array[at] for name, array in drawn.arrays().items()}
    return Plan(policy=policy, resolution=resolution, **arrays)


def _to_integers(uniform: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Map uniform numbers in [0, 1) to integers 0 … count-1 of equal probability."""
    return (uniform * count).astype(np.int64)


def _draw_ops(policy: Policy, table: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Operations (B, N) and their arguments (B, N), computed from uniform numbers (B, N, _OP_DRAWS)."""
    if policy.randaugment is None:
        return np.zeros(table.shape[:2], dtype=np.int64), np.zeros(table.shape[:2], dtype=np.float32)
    op = np.array(DRAWN)[_to_integers(table[:, :, 0], len(DRAWN))]
    sign = np.where(table[:, :, 1] < 0.5, -1.0, 1.0)
    # Box and Muller (1958): always two uniform numbers for a normal one, so the width of the table is fixed.
    radius = np.sqrt(-2.0 * np.log1p(-table[:, :, 2]))
    normal = radius * np.cos(2.0 * np.pi * table[:, :, 3])
    level = levels(policy.randaugment, normal, table[:, :, 2])
    argument = arguments(policy, op, level, sign)
    # The kernels ignore the argument of the identity.
    return np.where(table[:, :, 4] < policy.randaugment.prob, op, int(Op.IDENTITY)), argument


def identity(policy: Policy, batch_size: int, resolution: int) -> Plan:
    """Plan with the shapes of `draw` that changes no image."""
    num_ops = 0 if policy.randaugment is None else policy.randaugment.num_ops
    return Plan(
        policy=policy,
        resolution=resolution,
        op=np.full((batch_size, num_ops), int(Op.IDENTITY), dtype=np.int64),
        argument=np.zeros((batch_size, num_ops), dtype=np.float32),
        centre=np.zeros((batch_size, num_ops, 2), dtype=np.int64),
        shift=np.zeros((batch_size, 2), dtype=np.int64),
        flip=np.zeros(batch_size, dtype=np.bool_),
        square=np.zeros((batch_size, 3), dtype=np.int64),
    )


def join(plans: Sequence[Plan]) -> Plan:
    """Join the plans of consecutive parts of a batch to one plan.

    Raises:
        InputError: `plans` is empty, or the policies or resolutions differ.
    """
    if len({(plan.policy, plan.resolution) for plan in plans}) != 1:
        raise InputError(
            f"{len(plans)} noise plans to join; give at least one, all with one policy and one resolution"
        )
    parts = [plan.arrays() for plan in plans]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Plan(policy=plans[0].policy, resolution=plans[0].resolution, **arrays)


_ATTEMPTS = 10
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_CENTRE = 224 / 256  # side of the fall-back centre crop as a fraction of the shorter side


def crop_boxes(
    policy: Policy, seed: int, stream: str, step: int, sizes: NDArray[np.integer[Any]]
) -> NDArray[np.float32] | None:
    """Draw the boxes of crop 'inception' (Szegedy et al., arXiv:1409.4842).

    The area is 0.08 … 1 of the image, the aspect ratio 3/4 … 4/3 and log-uniform. Corners lie on whole
    pixels. If none of 10 attempts fits into the image, the box is the centre square with 7/8 of the shorter
    side. Row i depends only on sizes[i] and its own draws.

    Args:
        policy: see `policies.build_policy`.
        seed: seed of the run.
        stream: name of the image set, as in `draw`.
        step: training step.
        sizes: (B, 2) height and width of the original images in pixels.

    Returns:
        (B, 4) top, left, height, width as fractions of the original image. None for other crops.
    """
    if policy.crop != "inception":
        return None
    return _boxes(sizes, _crop_table(seed, stream, step, len(sizes)))


def crop_boxes_of_rows(
    policy: Policy, seed: int, stream: str, rows: NDArray[np.int64], sizes: NDArray[np.integer[Any]]
) -> NDArray[np.float32] | None:
    """Draw crop boxes for some rows (B,) of a set, a pure function of (seed, stream, row) and the size."""
    if policy.crop != "inception":
        return None
    blocks, at = _blocks(rows)
    tables = [_crop_table(seed, stream, block, _BLOCK) for block in blocks]
    return _boxes(sizes, np.concatenate(tables)[at])


def _crop_table(seed: int, stream: str, step: int, count: int) -> NDArray[np.float64]:
    # Every attempt is drawn for every image: so the draws of an image do not depend on its size.
    return generator(seed, f"crop/{stream}", step).random((count, _ATTEMPTS, 4))


def _boxes(sizes: NDArray[np.integer[Any]], table: NDArray[np.float64]) -> NDArray[np.float32]:
    """Boxes (B, 4) for images of some sizes (B, 2), from uniform numbers (B, _ATTEMPTS, 4)."""
    size = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
    area = size.prod(axis=1)[:, None] * (_AREA[0] + (_AREA[1] - _AREA[0]) * table[:, :, 0])
    low, high = np.log(_ASPECT)
    aspect = np.exp(low + (high - low) * table[:, :, 1])  # width / height
    box = np.rint(np.sqrt(np.stack([area / aspect, area * aspect], axis=2)))  # (B, attempts, 2)
    fits = ((box >= 1) & (box <= size[:, None])).all(axis=2)  # (B, attempts)
    first, rows = fits.argmax(axis=1), np.arange(len(size))
    chosen = box[rows, first]  # (B, 2)
    corner = np.floor(table[rows, first, 2:] * (size - chosen + 1))
    centre = np.maximum(1.0, np.floor(_CENTRE * size.min(axis=1, keepdims=True))).repeat(2, axis=1)
    failed = ~fits.any(axis=1)
    chosen[failed], corner[failed] = centre[failed], np.floor((size - centre + 1) / 2)[failed]
    return np.concatenate([corner / size, chosen / size], axis=1).astype(np.float32)
