from __future__ import annotations

from collections.abc import Iterator

import pytest
from pretend_cuda import pretended
from pretend_gpu import Gpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """A machine with two GPUs, which compute on the CPU."""
    with pretended(monkeypatch) as found:
        yield found
