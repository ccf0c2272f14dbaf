"""Compare Triton's kernels with `ops.run` in Triton's interpreter: run with TRITON_INTERPRET=1."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from noise_inputs import FULL, synthetic, to_torch

from noisystudent.augment import ops, triton_ops
from noisystudent.augment.plan import draw
from noisystudent.augment.policies import DRAWN, RandAugment
from noisystudent.augment.program import compile_plan


def main(side: int, count: int, block: int, quirks: Any) -> None:
    """Print what differs, and the number of operations that were compared."""
    torch.set_num_threads(1)
    policy = replace(
        FULL,
        quirks=quirks,
        crop_last=quirks == "official",
        cutout=7 if quirks == "official" else 0,
        # Magnitudes from 0 to 30, another one for each operation.
        randaugment=RandAugment(num_ops=3, magnitude=30, magnitude_std=float("inf"), prob=0.95),
    )
    images, plan = to_torch(synthetic(side, count)), draw(policy, 0, "test", side, count, resolution=side)
    program = compile_plan(plan, images.device, grouped=False)
    noised, expected = triton_ops.run(images, program, block=block), ops.run(images, program)
    for row in (noised != expected).flatten(1).any(1).nonzero().flatten().tolist():
        print(f"image {row} differs: {plan.op[row]} {plan.argument[row]}")
    print(f"{len(set(plan.op.flat) & set(DRAWN))} operations")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
