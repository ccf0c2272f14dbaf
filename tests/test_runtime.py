"""What the machine promises."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import FakeCuda

from noisystudent.runtime import resolve_device

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


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_named_is_the_current_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, existing = FakeCuda(monkeypatch), torch.device("cuda", torch.device(name).index or 0)
    monkeypatch.setattr(torch, "empty", lambda *_, device: SimpleNamespace(device=existing))
    assert resolve_device(name) == existing == cuda.device
