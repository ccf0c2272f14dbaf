"""Functions that workers call in tests: every worker imports this module, so it imports little."""

from __future__ import annotations

import os
import resource
import signal

import torch

from noisystudent.errors import RunError


def double(number: int) -> int:
    return 2 * number


def refuse_three(number: int) -> int:
    if number == 3:
        raise RunError("three is missing")
    return number


def large_pixels(_number: int) -> torch.Tensor:
    """More bytes than a file of this process may have: the shared memory of a tensor is a file too."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    return torch.zeros(2000, dtype=torch.uint8)


def die(_number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def stop_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    return number
