"""Triton's kernels give the pixels of `ops.run`: in its interpreter, in the code for a GPU, and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from noise_inputs import FULL, synthetic, to_torch

from noisystudent.augment import ops
from noisystudent.augment.plan import draw
from noisystudent.augment.policies import RandAugment
from noisystudent.augment.program import compile_plan

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")


@pytest.mark.parametrize(
    ("side", "count", "block", "quirks"),
    [
        (32, 32, 1024, "defined"),
        pytest.param(33, 32, 1024, "official", marks=pytest.mark.slow),  # two blocks, the second one not full
        pytest.param(32, 200, 256, "defined", marks=pytest.mark.slow),
        pytest.param(32, 200, 1024, "official", marks=pytest.mark.slow),
        pytest.param(224, 200, 65536, "defined", marks=pytest.mark.slow),
        pytest.param(224, 200, 16384, "official", marks=pytest.mark.slow),
    ],
)
def test_the_interpreter_gives_equal_pixels(side: int, count: int, block: int, quirks: str) -> None:
    # A process of its own, because Triton reads the variable when its kernels are defined.
    script = Path(__file__).with_name("interpreted.py")
    command = [sys.executable, str(script), str(side), str(count), str(block), quirks]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout, done.stderr) == ("16 operations\n", "")


@pytest.mark.parametrize("kernel", ["_make_tables", "_make_pixels"])
def test_the_code_for_a_gpu_fuses_no_rounding(kernel: str) -> None:
    """Compiled for compute capability 9.0, without a GPU: the code is that without fused multiply-adds."""
    assert len({machine_code(kernel, fused) for fused in (True, False)}) == 1


def machine_code(kernel: str, fused: bool) -> str:
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from noisystudent.augment import triton_ops

    constants: dict[str, Any] = {"WIDTH": 40, "LAYER": 0, "SIDE": 32, "MOVE": True, "BLOCK": 1024}
    constants |= {"LEVEL": -1, "SQUARE": True, "MOVE_LAST": True}
    function = getattr(triton_ops, kernel)
    pointers = {"images": "*u8", "noised": "*u8", "tables": "*u8", "words": "*i32"}
    signature = {name: pointers.get(name, "constexpr") for name in function.arg_names}
    values = {(at,): constants[name] for at, name in enumerate(signature) if name in constants}
    made = compile_kernel(
        ASTSource(fn=function, signature=signature, constexprs=values),
        target=GPUTarget("cuda", 90, 32),
        options={"enable_fp_fusion": fused, "num_warps": triton_ops.WARPS},
    )
    return str(made.asm["sass"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("quirks", ["defined", "official"])
@pytest.mark.parametrize("side", [32, 33, 224])
def test_a_gpu_gives_equal_pixels(side: int, quirks: Literal["defined", "official"]) -> None:
    from noisystudent.augment import triton_ops

    images = to_torch(synthetic(side, 200))
    for magnitude in (3, 9, 27):
        noise = RandAugment(num_ops=2, magnitude=magnitude)
        policy = replace(FULL, quirks=quirks, crop_last=quirks == "official", randaugment=noise)
        plan = draw(policy, magnitude, "test", 0, 200, resolution=side)
        program = compile_plan(plan, torch.device("cuda"), grouped=False)
        assert torch.equal(triton_ops.run(images.cuda(), program).cpu(), ops.apply(images, plan))
