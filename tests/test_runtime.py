"""What the machine promises."""

import platform
import resource

import pytest
import torch

from noisystudent.runtime import resolve_device


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a promise of glibc")
def test_a_freed_block_is_not_mapped_again():
    device = resolve_device("cpu")
    pages = 2**24 * 4 // resource.getpagesize()  # of 64 MiB, more than malloc keeps of itself
    for _ in range(3):  # until the heap has a place for it
        torch.ones(2**24, device=device)
    before = page_faults()
    for _ in range(5):
        torch.ones(2**24, device=device)
    assert page_faults() - before < pages
