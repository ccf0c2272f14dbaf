"""Laws of a captured step that hold on every device."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda

from noisystudent.records import Batch
from noisystudent.train.execution import _WARM_UPS, _Captured

CAPTURE = _WARM_UPS + 1  # number of the step that captures


def batch() -> Batch:
    return Batch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(1).long(), torch.zeros(1, 3))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def run(step: _Captured, steps: int = CAPTURE) -> None:
    state: Any = None  # the steps of these tests change nothing
    for _ in range(steps):
        step(state, batch())


def test_memory_may_be_pinned_while_a_step_is_captured(cuda: FakeCuda) -> None:
    def advance(*_: object) -> None:
        loader = threading.Thread(target=cuda.pin_memory)
        loader.start()
        loader.join()

    run(_Captured(advance))
    assert cuda.replays == 1
