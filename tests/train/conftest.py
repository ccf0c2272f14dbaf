from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_training import LABELED, Training

from noisystudent.config import TrainConfig


@pytest.fixture
def training(tmp_path: Path) -> Callable[..., Training]:
    """`training(name, progress=…, total_steps=…, **fields of TrainConfig)` in its own folder."""

    def make(name: str = "run", *, changes: dict[str, Any] | None = None, **options: Any) -> Training:
        kept = {key: options.pop(key) for key in ("total_steps", "progress") if key in options}
        defaults: dict[str, Any] = {"log_steps": 5, "checkpoint_steps": 7, "lr": 2.0, "batch_size": LABELED}
        return Training(tmp_path / name, TrainConfig(**(defaults | options)), changes=changes or {}, **kept)

    return make
