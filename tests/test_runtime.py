"""What the machine promises."""

import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from noisystudent.runtime import (
    batch_size_for,
    on_host,
    packed_bytes,
    packed_views,
    resolve_device,
    resolve_dtype,
)

# In a process of its own, where nobody has asked for the device before.
WHERE_A_BLOCK_LIES = """
import sys, torch
from noisystudent.runtime import resolve_device
if sys.argv[1] == "resolved":
    resolve_device("cpu")
block = torch.ones(2**24)  # 64 MiB: malloc of itself maps it apart, and gives it back when it is freed
heap = next(line for line in open("/proc/self/maps") if "[heap]" in line).split()[0]
start, stop = (int(end, 16) for end in heap.split("-"))
print(start <= block.data_ptr() < stop)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a promise of glibc")
@pytest.mark.parametrize(("device", "kept"), [("resolved", "True"), ("not", "False")])
def test_what_is_freed_stays_with_the_process(device: str, kept: str) -> None:
    command = [sys.executable, "-c", WHERE_A_BLOCK_LIES, device]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == kept


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """A machine with two GPUs. The switches of torch are set back after the test."""
    create = torch.empty

    def empty(*sizes: int, device: str | torch.device = "cpu") -> Any:
        if not str(device).startswith("cuda"):
            return create(*sizes, device=device)
        return SimpleNamespace(device=torch.device("cuda", torch.device(device).index or 0))

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    flags = {name: getattr(cudnn, name) for name in ("allow_tf32", "benchmark", "deterministic")}
    yield FakeCuda(monkeypatch)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(before)
    for name, value in flags.items():
        setattr(cudnn, name, value)


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_named_is_the_current_one(name: str, cuda: FakeCuda) -> None:
    assert resolve_device(name) == cuda.device == torch.device("cuda", int(name == "cuda:1"))


BACKENDS: Any = torch.backends  # torch does not declare their parts
FP32: list[Any] = [BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn]


def _old_switches() -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True


def _new_switches() -> None:
    for backend in FP32:
        backend.fp32_precision = "tf32"


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("switch", [lambda: None, _old_switches, _new_switches])
def test_fp32_on_a_gpu_is_never_tf32(switch: Callable[[], None]) -> None:
    switch()
    resolve_device("cuda")
    assert "tf32" not in [backend.fp32_precision for backend in FP32]
    # torch raises if its old switches, which Inductor reads, contradict the new ones.
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_of_a_gpu_are_searched_or_deterministic(deterministic: bool) -> None:
    resolve_device("cuda", deterministic=not deterministic)
    resolve_device("cuda", deterministic=deterministic)
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch._inductor.config.deterministic is deterministic  # or the compiler would measure its kernels
    assert torch.backends.cudnn.deterministic is deterministic
    assert torch.backends.cudnn.benchmark is not deterministic


@pytest.mark.parametrize(
    ("capability", "bf16"), [((6, 1), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)]
)
def test_a_gpu_computes_in_bf16_only_if_it_has_it(
    capability: tuple[int, int], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    gpu = torch.device("cuda:0")
    for precision in ("auto", "bf16"):
        assert resolve_dtype(precision, gpu) == (torch.bfloat16 if bf16 else torch.float32)
    assert resolve_dtype("fp32", gpu) == torch.float32


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("avx512", [False, True])
def test_a_cpu_computes_in_bf16_only_if_it_has_it_and_only_on_request(
    amx: bool, avx512: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    cpu = torch.device("cpu")
    assert resolve_dtype("bf16", cpu) == (torch.bfloat16 if amx or avx512 else torch.float32)
    assert resolve_dtype("auto", cpu) == resolve_dtype("fp32", cpu) == torch.float32


TYPES = st.sampled_from([torch.uint8, torch.bool, torch.float16, torch.float32, torch.int64, torch.float64])


@given(st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=4), TYPES, st.booleans()), max_size=6))
def test_views_of_one_memory_hold_what_tensors_of_their_own_do(
    kinds: list[tuple[list[int], torch.dtype, bool]],
) -> None:
    tensors = [
        torch.arange(1000)[: torch.Size(shape).numel()].view(shape).to(kind) for shape, kind, _ in kinds
    ]
    for at, (shape, _, last) in enumerate(kinds):
        if last and len(shape) == 4:
            tensors[at] = tensors[at].contiguous(memory_format=torch.channels_last)
    views = packed_views(torch.empty(packed_bytes(tensors), dtype=torch.uint8), tensors)
    for view, tensor in zip(views, tensors, strict=True):
        view.copy_(tensor)
    for view, tensor in zip(views, tensors, strict=True):
        assert torch.equal(view, tensor) and view.dtype == tensor.dtype and view.stride() == tensor.stride()


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
@pytest.mark.parametrize("lag", [0, 1, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_tensors_come_to_the_host_in_order_and_late(count: int, lag: int, device: str) -> None:
    drawn: list[int] = []

    def values() -> Iterator[Tensor]:
        for number in range(count):
            drawn.append(number)
            yield torch.full((2, 3), number, device=device)

    for done, array in enumerate(on_host(values(), lag)):
        assert array.shape == (2, 3) and (array == done).all()
        assert len(drawn) == min(count, done + lag + 1)
    assert len(drawn) == count


def test_the_host_waits_for_the_copies_of_the_device_of_the_values(cuda: FakeCuda) -> None:
    """Events of another GPU, the current one, would be over before these copies are."""
    second = torch.device("cuda:1")
    values: Any = SimpleNamespace(is_cuda=True, device=second, to=lambda *_, **__: torch.ones(2, 3))
    assert next(on_host([values])).tolist() == [[1.0] * 3] * 2
    assert cuda.host_waited_for == [cuda.current_stream(second)]


@given(side=st.integers(1, 5000), most=st.integers(1, 4096), device=st.sampled_from(["cpu", "cuda"]))
def test_a_batch_of_large_images_is_a_smaller_power_of_two(side: int, most: int, device: str) -> None:
    size = batch_size_for(side, most, torch.device(device))
    pixels = 2**21 if device == "cpu" else 2**24
    assert 1 <= size <= most
    assert size == 1 or size * side**2 <= pixels
    assert size == most or (size.bit_count() == 1 and 2 * size * side**2 > pixels)
