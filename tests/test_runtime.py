"""What the machine promises."""

import platform
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noisystudent.runtime import packed_bytes, packed_views

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
