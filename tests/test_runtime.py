"""What the machine promises."""

import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from noisystudent.runtime import on_host

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
