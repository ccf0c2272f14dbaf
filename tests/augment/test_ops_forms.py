"""The pixels are the same with fixed shapes, compiled, on a GPU and in a CUDA graph."""

from __future__ import annotations

from dataclasses import replace
from shutil import which
from typing import Any, Literal

import numpy as np
import pytest
import torch
from noise_inputs import FULL, synthetic, to_torch

from noisystudent.augment import ops
from noisystudent.augment.plan import draw, join
from noisystudent.augment.policies import DRAWN, RandAugment
from noisystudent.augment.program import compile_plan


@pytest.mark.parametrize("quirks", ["defined", "official"])
def test_fixed_shapes_give_the_same_pixels(quirks: Literal["defined", "official"]) -> None:
    policy = replace(FULL, quirks=quirks, randaugment=RandAugment(num_ops=3, magnitude=15, prob=0.9))
    images, plan = to_torch(synthetic(32, 200)), draw(policy, 0, "test", 0, 200, resolution=32)
    fixed = ops.run(images, compile_plan(plan, images.device, grouped=False))
    assert torch.equal(fixed, ops.apply(images, plan))


def test_a_program_takes_over_another_plan() -> None:
    images = to_torch(synthetic(32, 60))
    first, second = (
        compile_plan(draw(FULL, 0, "test", step, 60, resolution=32), images.device, grouped=False)
        for step in (0, 1)
    )
    assert not torch.equal(ops.run(images, first), ops.run(images, second))
    address = first.words.data_ptr()
    first.load(second)
    assert torch.equal(ops.run(images, first), ops.run(images, second))
    assert first.words.data_ptr() == address  # a captured graph reads this memory


def test_a_part_of_a_program_is_that_of_its_step() -> None:
    images = to_torch(synthetic(32, 60))
    plans = [draw(FULL, 0, "test", step, 60, resolution=32) for step in range(4)]
    joined = compile_plan(join(plans), images.device, grouped=False)
    for step in (2, 0, 3):
        noised = ops.run(images, joined.part(torch.tensor(step), 60))
        assert torch.equal(noised, ops.apply(images, plans[step]))


ON_CPU = pytest.param(
    "cpu", marks=[pytest.mark.slow, pytest.mark.skipif(which("g++") is None, reason="needs a C++ compiler")]
)
ON_GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
@pytest.mark.parametrize("device", [ON_CPU, ON_GPU])
@pytest.mark.parametrize(("side", "quirks"), [(32, "defined"), (33, "official")])
def test_compiled_noise_is_one_graph_of_the_same_pixels(
    device: str, side: int, quirks: Literal["defined", "official"]
) -> None:
    # A GPU compiler fuses product and sum into one rounding. The CPU compiler is set to do so too: the pixels
    # must not change.
    fused: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast"}
    compiled = torch.compile(ops.run, fullgraph=True, dynamic=False, options=fused)
    low, high = np.sort(np.random.default_rng(0).integers(0, 256, (2, 500, 1, 1, 3)), axis=0)
    images = to_torch((low + synthetic(side, 500) % (high - low + 1)).astype(np.uint8))
    for step in range(8):
        noise = RandAugment(num_ops=2, magnitude=3 * step + 1)
        policy = replace(FULL, randaugment=noise, quirks=quirks, crop_last=quirks == "official")
        plan = draw(policy, 0, "test", step, 500, resolution=side)
        assert set(plan.op.flat) == set(DRAWN)
        program = compile_plan(plan, torch.device(device), grouped=False)
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            noised = compiled(images.to(device), program)
        assert torch.equal(noised.cpu(), ops.apply(images, plan))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("side", [32, 224])
def test_gpu_gives_the_pixels_of_the_cpu(side: int) -> None:
    images = to_torch(synthetic(side, 48))
    for magnitude in (3, 9, 27):
        policy = replace(FULL, randaugment=RandAugment(num_ops=2, magnitude=magnitude))
        plan = draw(policy, magnitude, "test", 0, 48, resolution=side)
        assert torch.equal(ops.apply(images.cuda(), plan).cpu(), ops.apply(images, plan))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fixed_shapes_can_be_captured() -> None:
    images = to_torch(synthetic(32, 48))
    programs = [
        compile_plan(draw(FULL, 0, "test", step, 48, resolution=32), images.device, grouped=False)
        for step in range(2)
    ]
    on_gpu = images.cuda()
    static = compile_plan(draw(FULL, 0, "test", 9, 48, resolution=32), on_gpu.device, grouped=False)
    ops.run(on_gpu, static)  # warm up outside the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.run(on_gpu, static)
    for program in programs:
        static.load(program)
        graph.replay()
        assert torch.equal(captured.cpu(), ops.run(images, program))
