"""Draws what happens to each image: a pure function of (policy, seed, stream, step) to small arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent.augment.policies import DRAWN, Op, Policy, arguments, levels
from noisystudent.errors import InputError
from noisystudent.runtime import generator

_IMAGE_DRAWS = 5  # crop down, crop right, flip, cutout row, cutout column
_OP_DRAWS = 7  # operation, sign, two for the jitter, applied or not, Cutout row, Cutout column


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What happens to each of B square images; row i speaks of image i alone.

    Attributes:
        policy: what the plan was drawn from.
        resolution: side S in pixels of the images it fits.
        op: (B, N) int64, `Op` numbers in the order they are applied.
        argument: (B, N) float32, what each is called with (`policies.arguments`).
        centre: (B, N, 2) int64, row and column of the centre of RandAugment's Cutout.
        shift: (B, 2) int64, rows and columns the crop window moves down and right; beyond the edge it sees
            the reflected image.
        flip: (B,) bool, mirrored left and right after the crop.
        square: (B, 3) int64, row, column and side of the always-on cutout; side 0 is none.
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
        """The per-image arrays by field name, each with B rows."""
        names = [field.name for field in fields(self)][2:]
        return {name: getattr(self, name) for name in names}

    def rows(self, start: int, stop: int) -> Plan:
        """The plan of images start … stop-1: one process's part of a global batch."""
        parts = {name: array[start:stop] for name, array in self.arrays().items()}
        return Plan(policy=self.policy, resolution=self.resolution, **parts)


def draw(policy: Policy, seed: int, stream: str, step: int, batch_size: int, resolution: int) -> Plan:
    """Draw the noise of one batch.

    All numbers come from one call that fills a (batch_size, width) table row by row, whose width depends on
    the number of operations only. So an image's noise is the same whatever the batch size, and switching one
    part of a policy off leaves the draws of the others as they were.

    Args:
        policy: see `policies.build_policy`.
        seed: of the run.
        stream: names the images, so that two sets in one step get unrelated noise.
        step: of the training.
        batch_size: B, images of the global batch.
        resolution: side S of the images in pixels.
    """
    num_ops = 0 if policy.randaugment is None else policy.randaugment.num_ops
    table = generator(seed, f"augment/{stream}", step).random(
        (batch_size, _IMAGE_DRAWS + _OP_DRAWS * num_ops)
    )
    image, ops = table[:, :_IMAGE_DRAWS], table[:, _IMAGE_DRAWS:].reshape(batch_size, num_ops, _OP_DRAWS)
    op, argument = _draw_ops(policy, ops)
    pad = resolution // 8 if policy.crop == "pad" else 0
    square = np.full((batch_size, 3), policy.cutout, dtype=np.int64)
    square[:, :2] = _whole(image[:, 3:5], resolution)
    return Plan(
        policy=policy,
        resolution=resolution,
        op=op,
        argument=argument,
        centre=_whole(ops[:, :, 5:7], resolution),
        shift=_whole(image[:, 0:2], 2 * pad + 1) - pad,
        flip=(image[:, 2] < 0.5) & policy.flip,
        square=square,
    )


def _whole(uniform: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Numbers in [0, 1) to whole numbers 0 … count-1, each as likely."""
    return (uniform * count).astype(np.int64)


def _draw_ops(policy: Policy, table: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Operations (B, N) and their arguments (B, N) from uniform numbers (B, N, _OP_DRAWS)."""
    if policy.randaugment is None:
        return np.zeros(table.shape[:2], dtype=np.int64), np.zeros(table.shape[:2], dtype=np.float32)
    op = np.array(DRAWN)[_whole(table[:, :, 0], len(DRAWN))]
    sign = np.where(table[:, :, 1] < 0.5, -1.0, 1.0)
    radius = np.sqrt(-2.0 * np.log1p(-table[:, :, 2]))  # Box and Muller, 1958
    normal = radius * np.cos(2.0 * np.pi * table[:, :, 3])
    level = levels(policy.randaugment, normal, table[:, :, 2])
    argument = arguments(policy, op, level, sign)
    return np.where(table[:, :, 4] < policy.randaugment.prob, op, int(Op.IDENTITY)), argument


def identity(policy: Policy, batch_size: int, resolution: int) -> Plan:
    """A plan of the shape `draw` gives that leaves every image as it is."""
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
    """The plans of consecutive parts of a batch as one.

    Raises:
        InputError: no plan, or plans of different policies or resolutions.
    """
    if len({(plan.policy, plan.resolution) for plan in plans}) != 1:
        raise InputError(
            f"{len(plans)} noise plans to join; they need one policy and one resolution in common"
        )
    parts = zip(*(plan.arrays().items() for plan in plans), strict=True)
    arrays = {same[0][0]: np.concatenate([array for _, array in same]) for same in parts}
    return Plan(policy=plans[0].policy, resolution=plans[0].resolution, **arrays)


_ATTEMPTS = 10
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_CENTRE = 224 / 256  # side of the fall-back's centre crop in units of the shorter side


def crop_boxes(
    policy: Policy, seed: int, stream: str, step: int, sizes: NDArray[np.integer[Any]]
) -> NDArray[np.float32] | None:
    """Random boxes of crop 'inception' (Szegedy et al., arXiv:1409.4842): area 0.08 … 1, aspect 3/4 … 4/3.

    The aspect is log-uniform, corners lie on whole pixels. Where none of 10 attempts fits, the box is the
    centre square of 7/8 of the shorter side. Row i depends on sizes[i] and its own draws only.

    Args:
        policy: see `policies.build_policy`.
        seed: of the run.
        stream: as in `draw`.
        step: of the training.
        sizes: (B, 2) height and width of the originals in pixels.

    Returns:
        (B, 4) top, left, height, width as fractions of the original; None for other crops.
    """
    if policy.crop != "inception":
        return None
    size = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
    table = generator(seed, f"crop/{stream}", step).random((len(size), _ATTEMPTS, 4))
    area = size.prod(axis=1)[:, None] * (_AREA[0] + (_AREA[1] - _AREA[0]) * table[:, :, 0])
    low, high = np.log(_ASPECT)
    aspect = np.exp(low + (high - low) * table[:, :, 1])  # width / height
    box = np.rint(np.sqrt(np.stack([area / aspect, area * aspect], axis=2)))  # (B, attempts, 2)
    fits = ((box >= 1) & (box <= size[:, None])).all(axis=2)
    first, each = fits.argmax(axis=1), np.arange(len(size))
    chosen = box[each, first]
    corner = np.floor(table[each, first, 2:] * (size - chosen + 1))
    centre = np.maximum(1.0, np.floor(_CENTRE * size.min(axis=1, keepdims=True))).repeat(2, axis=1)
    none = ~fits.any(axis=1)
    chosen[none], corner[none] = centre[none], np.floor((size - centre + 1) / 2)[none]
    return np.concatenate([corner / size, chosen / size], axis=1).astype(np.float32)
