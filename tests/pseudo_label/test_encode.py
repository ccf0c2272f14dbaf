"""How probabilities come to the host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda

from noisystudent.pseudo_label import encode


def test_the_host_waits_for_the_copies_of_the_device_of_the_probabilities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Events of another GPU, the current one, would be over before these copies are."""
    cuda, second = FakeCuda(monkeypatch), torch.device("cuda:1")
    probs: Any = SimpleNamespace(is_cuda=True, device=second, to=lambda *_, **__: torch.ones(2, 3))
    assert encode._to_host(probs)().tolist() == [[1.0] * 3] * 2
    assert cuda.host_waited_for == [cuda.current_stream(second)]
