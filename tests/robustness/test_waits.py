"""A test waits for the device as often as it has results, not after every batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_suite import COUNT, linear, nothing, plan, random_images
from torch import Tensor

from noisystudent.robustness import suite
from noisystudent.robustness.suite import run_tests

# One for each result. An attack also checks the labels of every batch, once.
WAITS = {"clean": (1, 0), "c": (2 * 14, 0), "fgsm": (4, 1), "pgd": (2, 2)}


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("test", WAITS)
def test_the_host_does_not_wait_for_the_model_after_each_batch(
    monkeypatch: pytest.MonkeyPatch, test: str, batches: int
) -> None:
    images, waited = random_images(COUNT // batches), 0
    # To generate corruptions takes copies of its own.
    images = replace(images, corrupted=lambda name, severity: images.clean())

    def counted(plain: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        def wait(tensor: Tensor) -> Any:
            nonlocal waited
            waited += 1
            return plain(tensor)

        return wait

    for name in ("cpu", "item", "tolist"):
        monkeypatch.setattr(Tensor, name, counted(getattr(Tensor, name)))
    monkeypatch.setattr(suite, "on_host", lambda values: [torch.cat(list(values)).cpu().numpy()])
    run_tests({"m": linear(0)}, images, plan(test), {"m": {}}, save=nothing, progress=nothing)
    results, per_batch = WAITS[test]
    assert waited == results + per_batch * batches
