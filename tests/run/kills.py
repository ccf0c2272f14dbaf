"""A kill of the process at any change of the file system."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


class Killed(BaseException):
    """Stands for a kill of the process: nothing runs after it."""


def kill_after(operations: int, patch: pytest.MonkeyPatch) -> None:
    """Let `operations` changes of the file system happen; the next one and all later ones raise Killed."""
    left = operations

    def guarded(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            if left <= 0:
                raise Killed
            left -= 1
            return real(*args, **kwargs)

        return call

    for name in ("replace", "rename", "mkdir", "rmdir", "unlink", "link"):
        patch.setattr(os, name, guarded(getattr(os, name)))
    patch.setattr(Path, "write_text", guarded(Path.write_text))
