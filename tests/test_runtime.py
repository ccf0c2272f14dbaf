"""What the machine promises."""

import platform
import subprocess
import sys

import pytest

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
