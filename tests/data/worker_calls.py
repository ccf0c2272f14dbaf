"""Functions that workers call in tests: every worker imports this module, so it imports little."""

from __future__ import annotations

import os
import signal

from noisystudent.errors import RunError


def double(number: int) -> int:
    return 2 * number


def refuse_three(number: int) -> int:
    if number == 3:
        raise RunError("three is missing")
    return number


def die(_number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def stop_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    return number
