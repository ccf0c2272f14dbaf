"""The cost of a stage is its own: neither that of the stage before, nor of the process."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from noisystudent.console import Progress
from noisystudent.run.cost import Cost
from noisystudent.run.record import read_record
from noisystudent.run.stages import Stage, run_stage

SIZE = 2**26  # bytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_the_peak_of_a_stage_is_not_that_of_the_stage_before(tmp_path: Path) -> None:
    peaks = []
    for name, size in (("large", SIZE), ("small", 1)):
        stage = Stage(name, tmp_path / name, "0" * 64, {})

        def work(stage: Stage = stage, size: int = size) -> None:
            stage.path.mkdir(exist_ok=True)
            with mmap.mmap(-1, size) as memory:  # new memory, and none that an earlier test has left
                for page in range(0, size, mmap.PAGESIZE):
                    memory[page] = 1

        run_stage(stage, work, Progress())
        record = read_record(stage.record) or {}
        assert record["seconds"] > 0 and record["memory"]["gpu"] is None
        peaks.append(record["memory"]["resident"])
    assert 0.9 * SIZE < peaks[0] - peaks[1] < 1.5 * SIZE


def test_a_system_without_that_peak_has_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noisystudent.run.cost._PROCESS", tmp_path / "none")
    assert Cost().read()["memory"] == {"resident": None, "gpu": None}
