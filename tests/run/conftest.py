"""What the tests of stages share: the kinds of a stage, and a locked run directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from noisystudent.run.lock import lock


@pytest.fixture(params=["file", "folder"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    with lock(tmp_path / "run"):
        yield tmp_path / "run"
